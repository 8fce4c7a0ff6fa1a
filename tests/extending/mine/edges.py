"""A loss term and a metric: how well the gradients of the picture are met."""

from torch import Tensor

from glci_dist.extensions import CompletionMetric, Completions, LossTerm, Metric


def differences(completions: Completions) -> Tensor:
    """Mean absolute difference of horizontal and vertical steps between pixels, a photo: (N,)."""
    error = completions.composites - completions.photos
    across, down = error.diff(dim=3).abs(), error.diff(dim=2).abs()
    return across.mean((1, 2, 3)) + down.mean((1, 2, 3))


class EdgeLoss(LossTerm):
    """``losses.terms.edges._target_=edges.EdgeLoss losses.terms.edges.weight=0.1``; its curve is loss/edges."""

    def __init__(self, *, power: float = 1.0) -> None:
        self._power = power

    def __call__(self, completions: Completions) -> Tensor:
        return differences(completions) ** self._power


class Sharpness(CompletionMetric):
    """Steps between pixels of the outputs over those of the photos."""

    metric = Metric("contest/sharpness", unit="ratio", panel="sharpness", label="sharpness")

    def __call__(self, completions: Completions) -> Tensor:
        ours, theirs = (each.diff(dim=3).abs().mean((1, 2, 3)) for each in (completions.outputs, completions.photos))
        return ours / theirs.clamp(min=1e-6)
