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
    from glci_dist.training.metrics import Metric, OverRanks, OverSteps
    from glci_dist.training.penalties import Penalty, PenaltyInputs
    from glci_dist.training.phases import StepPlan

# Imported when asked for: a loader worker that draws holes of the user's needs nothing of the trainer.
_HOMES = {
    "integers": "glci_dist.data.draws",
    "uniform": "glci_dist.data.draws",
    "HoleKind": "glci_dist.data.hole_kinds",
    "Shapes": "glci_dist.data.hole_kinds",
    "Fault": "glci_dist.errors",
    "BatchNorm2d": "glci_dist.models.batch_norm",
    "MaskedInput": "glci_dist.models.completion",
    "Discriminators": "glci_dist.models.discriminators",
    "SpectralConv2d": "glci_dist.models.spectral_norm",
    "SpectralLinear": "glci_dist.models.spectral_norm",
    "Callback": "glci_dist.training.callbacks.base",
    "Control": "glci_dist.training.callbacks.base",
    "TrainedStep": "glci_dist.training.callbacks.base",
    "CompletionMetric": "glci_dist.training.gan_metrics",
    "Logger": "glci_dist.training.loggers.base",
    "RunInfo": "glci_dist.training.loggers.base",
    "Completions": "glci_dist.training.loss_terms",
    "LossTerm": "glci_dist.training.loss_terms",
    "Metric": "glci_dist.training.metrics",
    "OverRanks": "glci_dist.training.metrics",
    "OverSteps": "glci_dist.training.metrics",
    "Penalty": "glci_dist.training.penalties",
    "PenaltyInputs": "glci_dist.training.penalties",
    "StepPlan": "glci_dist.training.phases",
}

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
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_HOMES[name]), name)
