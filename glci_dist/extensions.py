"""The public API for your own components: base classes and their arguments (docs/extending.md).

Import these names from here; they stay stable from version to version.
"""

from __future__ import annotations

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
