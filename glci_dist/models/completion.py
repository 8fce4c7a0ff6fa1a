"""The completion network of GLCIC (Iizuka, Simo-Serra, Ishikawa, SIGGRAPH 2017, table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glci_dist.models.batch_norm import BatchNorm2d


class MaskedInput(nn.Module):
    """The input layer of every completion network: fills the hole and appends the mask.

    ``fill``: ``mean`` (the mean colour, the paper's) or ``pyramid`` (``pyramid_fill``). The mean colour is a buffer, so
    it is saved with the weights. ``mirror``: the filled photo and the mask are appended once more, mirrored left to
    right: what the hole hides of an upright face, its other half may show (symmetry as in Li et al., "Learning Symmetry
    Consistent Deep CNNs for Face Completion", TIP 2020, without its warping).
    """

    mean_colour: Tensor

    def __init__(self, fill: str = "mean", mirror: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean_colour", torch.full((1, 3, 1, 1), 0.5))
        self._fill, self._mirror = fill, mirror
        self.channels = 8 if mirror else 4
        """Of the output."""

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        """Photos ``(N, 3, H, W)`` in [0, 1] and masks ``(N, 1, H, W)``, 1 in the hole, to ``(N, channels, H, W)``."""
        if self._fill == "pyramid":
            filled = pyramid_fill(photos, masks, self.mean_colour)
        else:
            filled = torch.lerp(photos, self.mean_colour.expand_as(photos), masks)
        inputs = [filled, masks]
        if self._mirror:
            inputs += [filled.flip(3), masks.flip(3)]
        return torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last)


def pyramid_fill(photos: Tensor, masks: Tensor, colour: Tensor) -> Tensor:
    """The photo outside the hole; inside, the known pixels around it, smoothly: ``(N, 3, H, W)``.

    Averages of known pixels over ever halved sizes, until each photo is one pixel, put back up by bilinear
    interpolation: the pull and push of Gortler et al., "The Lumigraph" (SIGGRAPH 1996), section 3.4. A photo without
    known pixels becomes ``colour``. Photos ``(N, 3, H, W)``, masks ``(N, 1, H, W)``, 0 or 1, colour ``(1, 3, 1, 1)``.
    """
    known = 1 - masks
    levels = [(photos * known, known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        # Where a side is odd, the last window is smaller; both averages divide by the same number.
        colours, shares = (F.avg_pool2d(each, 2, ceil_mode=True) for each in levels[-1])
        known = (shares > 0).to(shares.dtype)
        levels.append((colours / torch.where(shares > 0, shares, 1), known))
    filled = colour
    for colours, known in reversed(levels):
        if filled.shape[-2:] != colours.shape[-2:]:
            filled = F.interpolate(filled, size=colours.shape[-2:], mode="bilinear", align_corners=False)
        filled = colours + (1 - known) * filled
    return filled


def fill_colour(network: nn.Module) -> Tensor:
    """The fill colour ``(1, 3, 1, 1)`` in [0, 1] of a completion network's ``MaskedInput``; not a copy."""
    return next(module for module in network.modules() if isinstance(module, MaskedInput)).mean_colour


def convolution(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; without a bias, which batch norm would cancel."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def upsampling(inputs: int, outputs: int, kind: str) -> nn.Sequential:
    """Upsampling by 2: ``deconvolution`` (kernel 4, the paper's), ``resize`` (nearest, then kernel 3) or
    ``resize_after`` (kernel 3, then nearest: a quarter of the cost).

    Only the first causes checkerboard artefacts; the last leaves blocks of 2 x 2 equal pixels to the layers after it.
    """
    if kind == "resize":
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *convolution(inputs, outputs))
    if kind == "resize_after":
        return nn.Sequential(*convolution(inputs, outputs), nn.Upsample(scale_factor=2, mode="nearest"))
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def colours_from_logits(logits: Tensor, filled: Tensor | None = None) -> Tensor:
    """The sigmoid of ``logits`` ``(N, 3, H, W)``, in fp32; with ``filled`` (in [0, 1]) they are changes of its logits.

    Colours of 0 and 1, whose logits are infinite, count as half a level of 8 bits from there.
    """
    logits = logits.float()
    if filled is not None:
        logits = logits + torch.logit(filled.float(), eps=1 / 510)
    return torch.sigmoid(logits)


class CompletionNetwork(nn.Module):
    """17 layers, four of them dilated; receptive field 307 px; 6.07 M parameters at width 1.

    ``width`` multiplies every hidden channel count. ``fill``, ``mirror``: see ``MaskedInput``. ``residual``: the output
    is a change of the filled photo. ``skips``: the encoder's last activations at full and at half the size are added to
    the decoder's first. ``blocks``: with ``residual``, each of the four pairs of layers at a quarter of the size adds
    its output to its input (He et al., CVPR 2016); ``dilations``: of the four dilated layers. Sizes must be multiples
    of 4.
    """

    _SKIPS: Mapping[int, int] = {12: 2, 14: 0}
    """By layer, the layer before it whose output is added to its output."""
    _BLOCKS: Mapping[int, int] = {5: 3, 7: 5, 9: 7, 11: 9}

    def __init__(
        self,
        *,
        width: float = 1.0,
        enlarge: str = "deconvolution",
        fill: str = "mean",
        mirror: bool = False,
        residual: bool = False,
        skips: bool = False,
        blocks: str = "plain",
        dilations: Sequence[int] = (2, 4, 8, 16),
    ) -> None:
        super().__init__()
        c32, c64, c128, c256 = (max(1, round(width * channels)) for channels in (32, 64, 128, 256))
        self._residual = residual
        self._sums = {**(self._SKIPS if skips else {}), **(self._BLOCKS if blocks == "residual" else {})}
        self.fill = MaskedInput(fill, mirror)
        self.layers = nn.Sequential(
            convolution(self.fill.channels, c64, 5),
            convolution(c64, c128, stride=2),
            convolution(c128, c128),
            convolution(c128, c256, stride=2),
            convolution(c256, c256),
            convolution(c256, c256),
            *(convolution(c256, c256, dilation=dilation) for dilation in dilations),
            convolution(c256, c256),
            convolution(c256, c256),
            upsampling(c256, c128, enlarge),
            convolution(c128, c128),
            upsampling(c128, c64, enlarge),
            convolution(c64, c32),
            nn.Conv2d(c32, 3, 3, 1, 1),
        )

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        """The raw output ``(N, 3, H, W)`` in [0, 1], fp32; it does not depend on the photos inside the hole.

        ``photos``: ``(N, 3, H, W)`` in [0, 1]; ``masks``: ``(N, 1, H, W)``, 1 in the hole.
        """
        x = inputs = self.fill(photos, masks)
        kept: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self._sums:
                x = x + kept.pop(self._sums[number])
            if number in self._sums.values():
                kept[number] = x
        return colours_from_logits(x, inputs[:, :3] if self._residual else None)
