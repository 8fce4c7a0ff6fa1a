"""Process groups of consecutive ranks, for collectives that do not concern the whole world."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache

import torch.distributed as dist

from glci_dist.cluster.collectives import collective


def group_of_consecutive_ranks(count: int) -> dist.ProcessGroup:
    """The process group of this rank among ranks 0 to ``count`` - 1, the next ``count``, ...: the world's if it is all.

    The first call for a ``count`` is a collective of all ranks. Raises ``ValueError`` if ``count`` does not divide the
    world size.
    """
    world = dist.group.WORLD
    assert world is not None
    return world if count == dist.get_world_size() else _subgroup(world, count)


@lru_cache(maxsize=32)
def _subgroup(world: dist.ProcessGroup, count: int) -> dist.ProcessGroup:
    """``world`` keeps the groups of one process group from being those of the next."""
    with collective(f"the start of process groups of {count} ranks"):
        # The watchdog enforces engine.timeout_s, which torch's default could be shorter than.
        mine, _ = dist.new_subgroups(group_size=count, timeout=timedelta(days=30))
    assert isinstance(mine, dist.ProcessGroup)
    return mine
