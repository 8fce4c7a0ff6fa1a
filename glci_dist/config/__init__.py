"""The typed schema of ``configs/``: each field with its documentation (the docstring) and the rule for its value.

``glci_dist.compose`` fills it from Hydra's files and overrides; ``glci_dist.rules`` checks it.
"""

from glci_dist.config.cluster import RESERVED_PORTS, ClusterConfig
from glci_dist.config.data import CacheConfig, DataConfig, HolesConfig, OrderConfig
from glci_dist.config.model import CompletionConfig, DiscriminatorConfig, ModelConfig
from glci_dist.config.run import Config
from glci_dist.config.training import (
    CheckpointsConfig,
    DoctorConfig,
    EngineConfig,
    LossConfig,
    MonitorConfig,
    OptimizerConfig,
    OptimizersConfig,
    PhaseConfig,
)

__all__ = [
    "RESERVED_PORTS",
    "CacheConfig",
    "CheckpointsConfig",
    "ClusterConfig",
    "CompletionConfig",
    "Config",
    "DataConfig",
    "DiscriminatorConfig",
    "DoctorConfig",
    "EngineConfig",
    "HolesConfig",
    "LossConfig",
    "ModelConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "OptimizersConfig",
    "OrderConfig",
    "PhaseConfig",
]
