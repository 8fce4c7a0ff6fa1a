"""The rules for networks of the user's own, checked on two photos before training.

Exact resume, skipped updates and equal results for any number of ranks need networks whose forward pass changes no
state and draws no random numbers, and whose batch norm is over the global batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from glci_dist.errors import UserError, in_a_line
from glci_dist.models.batch_norm import BatchNorm2d, ConvertedBatchNorm2d, commit_running_statistics, local_statistics
from glci_dist.models.completion import MaskedInput

Outputs = tuple[Tensor, ...]


def convert_layers(network: nn.Module, key: str) -> None:
    """Convert torch's batch norms to global-batch ones; raise ``UserError`` for layers that break a rule."""
    converted: dict[int, BatchNorm2d] = {}
    for path, module in list(network.named_modules()):
        for name, layer in list(module._modules.items()):
            at = f"{path}.{name}".removeprefix(".")
            if isinstance(layer, _BatchNorm) and not isinstance(layer, BatchNorm2d):
                # One layer that stands in two places stays one.
                if id(layer) not in converted:
                    converted[id(layer)] = _converted(layer, f"{key}: layer {at}")
                setattr(module, name, converted[id(layer)])
            elif isinstance(layer, _DropoutNd) and layer.p:
                raise UserError(
                    f"{key}: layer {at} is a {type(layer).__name__}: what it draws is no function of the step, so "
                    "no run could be resumed exactly: leave it out"
                )
            elif layer is not None and _has_spectral_norm(layer):
                raise UserError(
                    f"{key}: layer {at} has torch's spectral norm, which moves on at every forward pass, those of "
                    "skipped updates too: use glci_dist.extensions.SpectralConv2d or SpectralLinear"
                )


def count_converted(network: nn.Module) -> int:
    """The number of batch norms that ``convert_layers`` converted."""
    return sum(isinstance(module, ConvertedBatchNorm2d) for module in network.modules())


def check_completion(network: nn.Module, *, size: int, key: str) -> None:
    """Raise ``UserError`` for the first rule that a completion network breaks."""
    if sum(isinstance(module, MaskedInput) for module in network.modules()) != 1:
        raise UserError(
            f"{key}: the network must have one glci_dist.extensions.MaskedInput and begin with it: it hides the hole "
            "and appends the mask"
        )
    photos, masks = torch.rand(2, 3, size, size), torch.zeros(2, 1, size, size)
    masks[0, :, : size // 2, : size // 2] = masks[1, :, size // 4 : size // 2, size // 2 :] = 1

    def run(count: int, photos: Tensor) -> Outputs:
        (output,) = _tensors(network(photos[:count], masks[:count]), key, "the output (N, 3, H, W)")
        return (output,)

    (output,), (in_bf16,) = _check(network, lambda count: run(count, photos), size=size, key=key)
    for each in (output, in_bf16):
        _check_tensor(each, (2, 3, size, size), f"{key}: the output")
    if output.min() < 0 or output.max() > 1:
        raise UserError(f"{key}: the output must lie in [0, 1]: end with a sigmoid")
    with _evaluating(network), torch.no_grad():
        (seen,), (other,) = run(2, photos), run(2, torch.lerp(photos, torch.rand_like(photos), masks))
    if not torch.allclose(seen, other, atol=1e-5):
        raise UserError(
            f"{key}: the output depends on what lies in the hole, which is the answer: use MaskedInput's output"
        )


def check_discriminators(
    network: nn.Module, *, size: int, patch: int, key: str, per_photo: bool, with_features: bool
) -> None:
    """Raise ``UserError`` for the first rule that discriminators break.

    ``per_photo``: a photo's logits must not depend on other photos, because of a penalty. ``with_features``: feature
    matching needs activations.
    """
    photos, patches = torch.rand(2, 3, size, size), torch.rand(2, 3, patch, patch)

    def run(count: int) -> Outputs:
        answer = network.logits_and_features(photos[:count], patches[:count])  # type: ignore[operator]
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], list | tuple)):
            raise UserError(f"{key}: logits_and_features must return (logits (N,), [activations])")
        return (_tensors(answer[0], key, "logits")[0], *_tensors(tuple(answer[1]), key, "the activations"))

    (logits, *features), (in_bf16, *_) = _check(network, run, size=size, key=key)
    for each in (logits, in_bf16):
        _check_tensor(each, (2,), f"{key}: the logits")
    if any(not each.dim() or len(each) != 2 for each in features):
        raise UserError(f"{key}: each activation must be (N, ...): a row a photo")
    if with_features and not features:
        raise UserError(f"{key}: losses.feature_matching needs activations, and logits_and_features returns none")
    if per_photo and any(isinstance(module, BatchNorm2d) for module in network.modules()):
        raise UserError(
            f"{key}: penalties need each photo judged by itself, but batch norm mixes the photos of a batch"
        )


def _check(network: nn.Module, run: Callable[[int], Outputs], *, size: int, key: str) -> tuple[Outputs, Outputs]:
    """Check the rules for all networks; returns the outputs of a training pass in fp32, and of one in bf16."""
    try:
        with local_statistics():
            return _try(network, run, key)
    except UserError:
        raise
    except Exception as error:  # the user's module can raise anything
        raise UserError(f"{key}: a pass over photos of {size} px fails: {in_a_line(error)}") from error


def _try(network: nn.Module, run: Callable[[int], Outputs], key: str) -> tuple[Outputs, Outputs]:
    network.train()
    # As the moving average is made.
    copy.deepcopy(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with _one_row_a_photo(network, 2, key):
        first = run(2)
    again = run(2)
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        raise UserError(
            f"{key}: a forward pass changes {changed[0]}: a skipped update would leave a trace in it; let only updates "
            "change a network"
        )
    if not all(torch.equal(one, other) for one, other in zip(first, again, strict=True)):
        raise UserError(f"{key}: two passes over the same photos differ: let the network draw nothing at random")
    torch.stack([each.float().square().mean() for each in first]).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32 or not parameter.requires_grad or parameter.grad is None:
            raise UserError(
                f"{key}: parameter {name} is not trained (it gets no gradient, or is not fp32): remove it, or register "
                "what is fixed as a buffer"
            )
    network.zero_grad()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        in_bf16 = run(2)
    commit_running_statistics(network, accept=False)
    with _evaluating(network), torch.no_grad():
        both, alone = run(2), run(1)
    if not all(torch.allclose(each[:1], one, atol=1e-4, rtol=1e-3) for each, one in zip(both, alone, strict=True)):
        raise UserError(f"{key}: in evaluation a photo's result depends on the photos beside it")
    return tuple(each.detach() for each in first), in_bf16


@contextmanager
def _one_row_a_photo(network: nn.Module, photos: int, key: str) -> Iterator[None]:
    """In the block, refuse other rows than one a photo in a batch norm over groups, which tells slots by their rows."""

    def check(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        (rows,) = (len(x) for x in (*inputs, *named.values()))
        if rows != photos:
            raise UserError(
                f"{key}: a batch norm gets {rows} rows for {photos} photos, and which of them belong to a "
                "group of photos is not known: set model.batch_norm.group=0, or pass it one row a photo"
            )

    grouped = [module for module in network.modules() if isinstance(module, BatchNorm2d) and module.group]
    hooks = [module.register_forward_pre_hook(check, with_kwargs=True) for module in grouped]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    network.eval()
    try:
        yield
    finally:
        network.train()


def _tensors(outputs: object, key: str, what: str) -> Outputs:
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    if not all(isinstance(each, Tensor) for each in found):
        raise UserError(f"{key}: {what} must be a tensor, not {type(outputs).__name__}")
    return found


def _check_tensor(tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
        raise UserError(
            f"{what} of two photos must be {shape}, fp32 and finite, not {tuple(tensor.shape)}, "
            f"{str(tensor.dtype).removeprefix('torch.')}"
        )


def _converted(layer: _BatchNorm, what: str) -> BatchNorm2d:
    if type(layer) not in (nn.BatchNorm2d, nn.SyncBatchNorm):
        raise UserError(f"{what} is a {type(layer).__name__}, which has no form over the global batch: use BatchNorm2d")
    if not (layer.affine and layer.track_running_stats) or layer.momentum is None:
        raise UserError(f"{what} must be affine, with running statistics and a momentum, to be over the global batch")
    ours = ConvertedBatchNorm2d(layer.num_features, eps=layer.eps, momentum=layer.momentum)
    ours.load_state_dict(layer.state_dict())
    return ours


def _has_spectral_norm(layer: nn.Module) -> bool:
    hooks = [type(hook).__name__ for hook in layer._forward_pre_hooks.values()]
    parametrized = [type(each).__name__ for module in layer.modules() for each in module.children()]
    return "SpectralNorm" in hooks or (hasattr(layer, "parametrizations") and "_SpectralNorm" in parametrized)
