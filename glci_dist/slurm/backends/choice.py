"""Which backend ``cluster.executor`` chooses: the one place that maps names to classes."""

from __future__ import annotations

import importlib

from glci_dist.errors import UserError
from glci_dist.slurm.backends.base import Backend
from glci_dist.slurm.backends.local import Debug, Local
from glci_dist.slurm.backends.scheduling import Scheduler
from glci_dist.slurm.backends.slurm import Slurm

NAMED: dict[str, type[Backend]] = {"slurm": Slurm, "local": Local, "debug": Debug}


def backend(name: str) -> Backend:
    """The backend of ``cluster.executor=name``, one of ``NAMED`` or a class by its dotted path.

    Raises ``UserError`` where that is no class of the protocol.
    """
    return NAMED[name]() if name in NAMED else _imported(name)


def _imported(path: str) -> Backend:
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    # Whatever a module raises that is not ours.
    except Exception as error:
        said = (str(error).strip().splitlines() or ["nothing was said"])[0]
        raise UserError(
            f"cluster.executor={path} cannot be imported ({type(error).__name__}: {said}): choose one of "
            f"{', '.join(NAMED)}, or give the dotted path of a class that Python finds (PYTHONPATH)"
        ) from error
    if not isinstance(kind, type):
        raise UserError(f"cluster.executor={path} is no class: give the dotted path of one (docs/slurm.md)")
    _check_has(path, kind, Backend)
    try:
        made: Backend = kind()
    except TypeError as error:
        raise UserError(f"cluster.executor={path} cannot be made ({error}): it must need no arguments") from error
    if made.scheduler is not None:
        _check_has(f"{path}.scheduler", made.scheduler, Scheduler)
    return made


def _check_has(path: str, found: object, protocol: type) -> None:
    """Raise ``UserError`` with the names of a protocol that an object or a class has not, or only as abstract ones."""
    names = (name for name in [*vars(protocol), *protocol.__annotations__] if not name.startswith("_"))
    missing = [
        name
        for name in names
        if not hasattr(found, name) or getattr(getattr(found, name), "__isabstractmethod__", False)
    ]
    if missing:
        raise UserError(
            f"cluster.executor={path} lacks {', '.join(dict.fromkeys(missing))}: "
            "glci_dist/slurm/backends/base.py says what that has to do"
        )
