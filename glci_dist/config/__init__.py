"""The typed schema of ``configs/``: each field with its documentation (the docstring) and the rule for its value.

``glci_dist.compose`` fills it from Hydra's files and overrides; ``glci_dist.rules`` checks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from glci_dist.config.cluster import RESERVED_PORTS as RESERVED_PORTS
from glci_dist.config.cluster import ClusterConfig
from glci_dist.config.data import CacheConfig as CacheConfig
from glci_dist.config.data import DataConfig, HolesConfig
from glci_dist.config.data import OrderConfig as OrderConfig
from glci_dist.config.fields import Rule, at_least, component
from glci_dist.config.model import BatchNormConfig as BatchNormConfig
from glci_dist.config.model import CompletionConfig as CompletionConfig
from glci_dist.config.model import DiscriminatorConfig as DiscriminatorConfig
from glci_dist.config.model import ModelConfig
from glci_dist.config.training import (
    CheckpointsConfig,
    DoctorConfig,
    EngineConfig,
    LossConfig,
    MonitorConfig,
    OptimizersConfig,
    PhaseConfig,
)
from glci_dist.config.training import OptimizerConfig as OptimizerConfig


@dataclass
class Config:
    """A run's whole configuration."""

    name: str = MISSING
    """Name of the run; its folder is ``runs``/``name``."""
    runs: str = "runs"
    """Parent folder of all runs."""
    seed: int = at_least(0, Rule(lambda seed: seed < 2**63, "is too large: it must be less than 2**63"), default=0)
    """Seed of all random numbers: weights, order, crops, flips, holes, patches, noise."""
    global_batch: int = at_least(1, default=32)
    """Photos per step, over all ranks, in phases without a ``batch`` of their own."""
    data: DataConfig = field(default_factory=DataConfig)
    holes: HolesConfig = field(default_factory=HolesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimizers: OptimizersConfig = field(default_factory=OptimizersConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    """The schedule: phases by name, in order; recipes have ``completion``, ``discriminator`` and ``joint``."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    metrics: dict[str, Any] = component(by_name=True)
    """Your own metrics of the completions at each step, by name: each a ``_target_`` and its arguments."""
    callbacks: dict[str, Any] = component("run", by_name=True)
    """Your own callbacks, by name: each a ``_target_`` and its arguments."""
    loggers: dict[str, Any] = component("run", by_name=True)
    """Loggers of scalars, pictures and texts besides TensorBoard, by name: each a ``_target_`` and its arguments."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
