"""The public API for your own components: base classes and their arguments (docs/extending.md).

Import these names from here; they stay stable from version to version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glci_dist.data.draws import integers, uniform
    from glci_dist.data.hole_kinds import HoleKind, Shapes
    from glci_dist.errors import Fault
    from glci_dist.models.batch_norm import BatchNorm2d
    from glci_dist.models.completion import MaskedInput
    from glci_dist.models.discriminators import Discriminators
    from glci_dist.models.spectral_norm import SpectralConv2d, SpectralLinear
    from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
    from glci_dist.training.gan_metrics import CompletionMetric
    from glci_dist.training.loggers.base import Logger, RunInfo
    from glci_dist.training.loss_terms import Completions, LossTerm
    from glci_dist.training.metric_registry import Metric, OverRanks, OverSteps
    from glci_dist.training.penalties import Penalty, PenaltyInputs
    from glci_dist.training.phases import StepPlan

# Imported when asked for: a loader worker that draws holes of the user's needs nothing of the trainer.
_HOMES = {
    "data.draws": ("integers", "uniform"),
    "data.hole_kinds": ("HoleKind", "Shapes"),
    "errors": ("Fault",),
    "models.batch_norm": ("BatchNorm2d",),
    "models.completion": ("MaskedInput",),
    "models.discriminators": ("Discriminators",),
    "models.spectral_norm": ("SpectralConv2d", "SpectralLinear"),
    "training.callbacks.base": ("Callback", "Control", "TrainedStep"),
    "training.gan_metrics": ("CompletionMetric",),
    "training.loggers.base": ("Logger", "RunInfo"),
    "training.loss_terms": ("Completions", "LossTerm"),
    "training.metric_registry": ("Metric", "OverRanks", "OverSteps"),
    "training.penalties": ("Penalty", "PenaltyInputs"),
    "training.phases": ("StepPlan",),
}
"""The public names by module."""

__all__ = [
    "BatchNorm2d",
    "Callback",
    "CompletionMetric",
    "Completions",
    "Control",
    "Discriminators",
    "Fault",
    "HoleKind",
    "Logger",
    "LossTerm",
    "MaskedInput",
    "Metric",
    "OverRanks",
    "OverSteps",
    "Penalty",
    "PenaltyInputs",
    "RunInfo",
    "Shapes",
    "SpectralConv2d",
    "SpectralLinear",
    "StepPlan",
    "TrainedStep",
    "integers",
    "uniform",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"glci_dist.{home}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
