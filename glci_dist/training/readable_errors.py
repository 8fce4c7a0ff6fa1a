"""Converts an error that ends an attempt into a message for its journal."""

from __future__ import annotations

import torch

from glci_dist.cluster.world import World, is_lost_peer
from glci_dist.errors import Ending, Fault, UserError, is_short_of_files


def is_from_lost_peer(error: BaseException, world: World) -> bool:
    """Whether this rank's error was caused by the end of another rank."""
    return isinstance(error, RuntimeError) and is_lost_peer(error, world.size)


def readable_error(error: BaseException, world: World) -> Exception:
    """``error`` with a message for the journal; a ``Fault`` or ``UserError`` if one line is enough."""
    if isinstance(error, Ending):
        return error
    here = f"rank {world.rank} on {world.host}"
    if is_from_lost_peer(error, world):
        why = f"{here} lost another rank, whose own message says why"
        return Fault(f"{why}; the same command goes on from the last checkpoint", one_rank=True)
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if is_short_of_files(said):
        return UserError(f"{here} cannot go on ({said})", one_rank=True)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said:
        return Fault(
            f"{here} is out of memory ({said}): use more ranks, engine.accumulation, fewer data.workers or a smaller "
            "global_batch; the same command goes on from the last checkpoint",
            one_rank=True,
        )
    return RuntimeError(f"{here}: {said}")
