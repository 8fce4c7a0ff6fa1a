"""The exponential moving average (EMA) of the completion network, which completes photos after training."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """An exponential moving average of a network's weights and running statistics.

    The decay rises from 0.1 to ``decay`` with the step, so that the first weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Blend ``network`` in, after the update of step ``step``."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        averages = [t for t in self.network.state_dict().values() if t.is_floating_point()]
        current = [t for t in network.state_dict().values() if t.is_floating_point()]
        torch._foreach_lerp_(averages, [t.detach() for t in current], weight)
