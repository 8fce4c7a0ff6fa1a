"""The events of a run's journal: a class for each kind, whose fields are those of its line, in their order.

Journals outlive versions: a name, a field and its meaning stay for good, and what a journal lacks has a default.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, dataclass_transform, get_args, get_origin, get_type_hints


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class Event:
    """What happened at a step. A field that is None is absent from the line."""

    name: ClassVar[str]
    """In the journal."""
    kinds: ClassVar[dict[str, type[Event]]] = {}
    """All classes of events, by name."""

    step: int
    _: KW_ONLY
    # The journal sets these.
    time: float = 0.0
    """Seconds since 1970."""
    attempt: int = 0
    host: str = ""
    pid: int = 0

    def __init_subclass__(cls, *, name: str) -> None:
        if name in Event.kinds:
            raise TypeError(f"two kinds of events are named {name!r}: {Event.kinds[name].__name__} and {cls.__name__}")
        cls.name = name
        Event.kinds[name] = dataclass(frozen=True)(cls)

    def record(self) -> dict[str, Any]:
        """The JSON object of its line."""
        about = {"attempt": self.attempt, "host": self.host, "pid": self.pid}
        return {"time": self.time, "event": self.name, "step": self.step, **about, **self._details()}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """The event of a line of this kind; a field that is missing, or of another type, is empty."""
        return cls(**{name: _value(record.get(name), types) for name, types in cls._types().items()})

    @classmethod
    @functools.cache
    def _types(cls) -> dict[str, tuple[type, ...]]:
        """Of each field: its type, and NoneType where it may be absent."""
        hints, found = get_type_hints(cls), {}
        for each in fields(cls):
            hint = hints[each.name]
            options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
            found[each.name] = tuple(get_origin(option) or option for option in options)
        return found

    def _details(self) -> dict[str, Any]:
        own = (each.name for each in fields(self)[len(fields(Event)) :])
        return {name: value for name in own if (value := getattr(self, name)) is not None}


def read(record: dict[str, Any]) -> Event:
    """The event of a line; ``UnknownEvent`` where another version wrote a kind that this one does not have."""
    return Event.kinds.get(record["event"], UnknownEvent).of(record)


def _value(found: Any, types: tuple[type, ...]) -> Any:
    kind = types[0]
    if kind in (int, float) and isinstance(found, int | float):
        with suppress(ValueError, OverflowError):  # an int is finite
            return kind(found)
    if kind is tuple and isinstance(found, list):
        return tuple(found)
    if isinstance(found, kind):
        return found
    return None if NoneType in types else kind()


class UnknownEvent(Event, name=""):
    """An event of a kind that this version does not have."""

    content: dict[str, Any]
    """Its whole line."""

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        return super().of({**record, "content": record})

    def record(self) -> dict[str, Any]:
        return dict(self.content)


class Started(Event, name="start"):
    """An attempt begins the run."""

    ranks: int
    device: str
    precision: str


class Resumed(Event, name="resume"):
    """An attempt goes on from a checkpoint; without device and precision where no step is left to run."""

    ranks: int
    device: str | None = None
    precision: str | None = None


class ConfigurationChanged(Event, name="changed"):
    """The user accepted changes to the configuration."""

    keys: tuple[str, ...]
    """With both values."""


class OtherVersion(Event, name="version"):
    """Another version wrote the run's configuration."""

    notes: tuple[str, ...]


class CheckpointMissing(Event, name="missing"):
    """The newest checkpoint that the journal tells of is not there."""

    checkpoint: str


class StepMoved(Event, name="moved"):
    """Changed phases moved the step that the run goes on at."""

    moves: tuple[str, ...]


class FirstStepDone(Event, name="running"):
    """An attempt ran its first step."""

    startup_seconds: dict[str, float]
    """Since the process's start, of each part."""


class PhaseStarted(Event, name="phase"):
    """A phase begins."""

    phase: str


class CheckpointSaved(Event, name="checkpoint"):
    """A checkpoint was committed."""

    phase: str
    path: str
    bytes: int
    """Over all ranks."""
    copy_seconds: float
    """That training waited for the copy."""
    write_seconds: float
    """From the end of the copy to the commit."""
    deleted: tuple[str, ...]
    """Checkpoints that retention removed."""


class CheckpointFailed(Event, name="checkpoint-failed"):
    """A checkpoint could not be written."""

    reason: str


class RetentionFailed(Event, name="retention-failed"):
    """Older checkpoints could not be removed."""

    reason: str


class CheckpointDamaged(Event, name="damaged"):
    """A checkpoint was damaged, and was set aside."""

    checkpoint: str
    problem: str
    set_aside: str


class SignalReceived(Event, name="signal"):
    """A signal stops the run."""

    signals: tuple[str | None, ...]  # of each rank


class SampleReplaced(Event, name="replaced"):
    """A sample did not decode, and the next one of its shard stands in its slot."""

    shard: str
    key: str
    slot: int
    reason: str


class WorkerLost(Event, name="worker-lost"):
    """A loader worker was lost."""

    rank: int
    on: str  # the rank's host
    reason: str


class GradientNotFinite(Event, name="not-finite"):
    """Updates were not applied, as a gradient was not finite."""

    networks: tuple[str, ...]
    answer: str
    norms: tuple[str, ...]
    """Of each network; words, as JSON has no nan."""
    keys: tuple[str, ...]
    """Of the step's samples."""


class GradientSpike(Event, name="spike"):
    """Updates were not applied, as a gradient's norm was beyond its limit."""

    networks: tuple[str, ...]
    answer: str
    norms: tuple[str, ...]
    limits: tuple[float, ...]
    keys: tuple[str, ...]


class RolledBack(Event, name="rollback"):
    """The run went back to a checkpoint."""

    to: int | None  # its step
    passed_over: tuple[int, ...]
    """The first step that is left out of the run, and the one after the last."""


class StragglerFound(Event, name="straggler"):
    """A host kept the others waiting."""

    slowest: str
    ratio: float
    """Its own time a step over the median of the other hosts'."""
    seconds: float


class Diagnosed(Event, name="diagnosis"):
    """The doctor found the contest in another state, or answered one."""

    state: str
    evidence: tuple[str, ...]
    advice: str
    answer: str
    """``warn``, ``balance``, ``rollback``, ``stop``; empty for a contest that is healthy again."""
    # What the phase's are multiplied by, where the answer changes them.
    alpha: float | None = None
    discriminator_lr: float | None = None


class NetworkReset(Event, name="renewed"):
    """A network was put back to what it was at the run's start."""

    network: str


class Evaluated(Event, name="evaluation"):
    """The completion network was measured on held-out photos."""

    figures: dict[str, float]
    """By their names in evaluation.json; each is a field of its own in the line."""

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        about = {"event", *(each.name for each in fields(Event))}
        return super().of({**record, "figures": {name: record[name] for name in record if name not in about}})

    def _details(self) -> dict[str, Any]:
        return self.figures


class EvaluationFailed(Event, name="not-evaluated"):
    """Held-out photos could not be read."""

    error: str


class DisplayFailed(Event, name="not-shown"):
    """A callback that only shows the run could not write."""

    observer: str
    error: str


class OutputLost(Event, name="not-printed"):
    """What is printed does not arrive."""

    stream: str
    reason: str


class Stopped(Event, name="stopped"):
    """The attempt saved its state and ended before the last step."""

    reason: str | None = None
    seconds: float | None = None
    """Since the signal, where one stopped it."""


class Failed(Event, name="failed"):
    """The attempt ended without saving its state."""

    reason: str | None = None


class Completed(Event, name="end"):
    """All steps are done."""

    reason: str | None = None


AttemptEnded = Completed | Stopped | Failed
"""What the last event of an attempt is, unless it was killed."""
