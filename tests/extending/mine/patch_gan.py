"""Discriminators: one network that judges overlapping parts of the photo (Isola et al., CVPR 2017)."""

from torch import Tensor, nn

from glci_dist.extensions import Discriminators, SpectralConv2d


class PatchDiscriminator(Discriminators):
    """A photo's logit is the mean of its parts'; the local patch is not looked at."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SpectralConv2d(inputs, outputs, 4, stride, 1)
            for inputs, outputs, stride in ((3, width, 2), (width, 2 * width, 2), (2 * width, 4 * width, 2))
        )
        self.head = SpectralConv2d(4 * width, 1, 3, 1, 1)

    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        x = 2 * photos - 1
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.head(x).mean((1, 2, 3)).float(), features
