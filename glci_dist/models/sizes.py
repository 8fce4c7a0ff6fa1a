"""Which photo sizes the networks accept; without importing torch."""

from __future__ import annotations

from glci_dist.config import Config
from glci_dist.errors import UserError


def bottleneck_side(size: int) -> int:
    """Side of the context encoder's bottleneck map: ``size`` halved until at most 8 px remain."""
    while size > 8:
        size = -(-size // 2)
    return size


def check_models(config: Config) -> None:
    """Raise ``UserError`` for a photo size that the configured completion network does not accept."""
    chosen, size = config.model.completion, config.data.size
    if chosen.kind == "context_encoder" and not chosen.custom:
        for name, phase in config.phases.items():
            if phase.steps and phase.size not in (0, size):
                raise UserError(
                    f"phases.{name}.size={phase.size}, but model.completion.kind=context_encoder takes photos of "
                    f"data.size={size} alone: set phases.{name}.steps=0, or its size to 0"
                )
    side = bottleneck_side(size)
    is_halved = size > side and size == side << (size // side).bit_length() - 1
    if not chosen.custom and chosen.kind == "context_encoder" and not is_halved:
        raise UserError(
            f"data.size={size} cannot be halved down to at most 8 px, as model.completion.kind=context_encoder needs: "
            "choose a size such as 64, 128, 160 or 256"
        )
