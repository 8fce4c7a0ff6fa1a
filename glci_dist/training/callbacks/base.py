"""What follows a training step by step: the one way to add to it without touching the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from glci_dist.data.batch import Batch
from glci_dist.errors import Fault, Interrupted, Superseded
from glci_dist.runs.events import DisplayFailed
from glci_dist.training.gan_step import Limits, Measures
from glci_dist.training.phases import StepPlan
from glci_dist.training.run_log import RunLog
from glci_dist.training.step_report import StepReport


@dataclass(frozen=True)
class TrainedStep:
    """A step that was run."""

    report: StepReport
    """As all ranks saw it, the same on every rank; ``report.plan`` says what the step had to do."""
    batch: Batch | None
    """This rank's; None where the step is passed over."""
    measures: Measures
    """This rank's."""
    limits: Limits
    """The gradient norms beyond which no update was applied."""


class Control:
    """Whether the run goes on after a step, ends, or goes back to a checkpoint; decided alike on every rank."""

    def __init__(self) -> None:
        self.ending: Exception | None = None
        """Why the run ends after this step, if it does."""
        self._back_to: int | None = None

    @property
    def is_superseded(self) -> bool:
        """Whether the run ends at once and without a trace, for a newer attempt owns it."""
        return isinstance(self.ending, Superseded)

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to decide on this step."""
        return self.is_superseded or self._back_to is not None

    def end(self, reason: Exception) -> None:
        """End the run after this step. The first reason counts; but a fault counts more than a signal, and that the
        run is another attempt's more than all.
        """
        # A signal asks for the same command again, and what cannot go on must not be.
        is_graver = isinstance(self.ending, Interrupted) and isinstance(reason, Fault)
        if self.ending is None or is_graver or isinstance(reason, Superseded):
            self.ending = reason

    def go_back(self, step: int) -> None:
        """Go on from ``step``, whose checkpoint has been loaded."""
        if isinstance(self.ending, Interrupted):
            # The step that follows is asked again, and ends the run with what it saves.
            self.ending = None
        self._back_to = step

    def take_step_back(self) -> int | None:
        """The step to go on from, once; None: the run does not go back."""
        step, self._back_to = self._back_to, None
        return step


class Callback:
    """Does nothing; subclasses override what they need. Those of one kind stand on every rank, or on rank 0 alone.

    A callback that is on every rank may use collectives, as all ranks call it at the same step.
    """

    is_display: ClassVar[bool] = False
    """It only shows the run: where it cannot write (``OSError``), that is told once and ends nothing."""

    @property
    def name(self) -> str:
        """By which a display that cannot write is told."""
        return type(self).__name__

    def on_start(self, step: int) -> None:
        """The attempt's first step will be ``step``; all state is loaded."""

    def adjust(self, plan: StepPlan) -> StepPlan:
        """What the next step does: ``plan``, or with changes; the same on every rank."""
        return plan

    def before_step(self, plan: StepPlan) -> None:
        """Called before the step's batch is taken."""

    def after_step(self, done: TrainedStep, control: Control) -> None:
        """Called after the step; not where a callback before this one had the run go back, or end at once."""

    def after_save(self, plan: StepPlan) -> None:
        """Called after the step's checkpoint was begun, if one was due, unless the run ends before its last step."""

    def on_rewind(self, step: int) -> None:
        """The run goes on from ``step``: what was shown of it and of later ones is void."""

    def on_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture ``(H, W, 3)``, uint8, was drawn after ``step``. On rank 0."""

    def on_evaluation(self, figures: Mapping[str, float], step: int) -> None:
        """The network was measured after ``step``; ``figures`` by their names in evaluation.json. On rank 0."""

    def close(self) -> None:
        """The run ends, in whatever way."""


class Callbacks:
    """The callbacks of a run, in their order."""

    def __init__(self, callbacks: Sequence[Callback], log: RunLog) -> None:
        self.all = list(callbacks)
        self._log = log
        self._failing: set[str] = set()

    def on_start(self, step: int) -> None:
        self._tell_all(step, lambda each: each.on_start(step))

    def adjust(self, plan: StepPlan) -> StepPlan:
        for each in self.all:
            plan = each.adjust(plan)
        return plan

    def before_step(self, plan: StepPlan) -> None:
        for each in self.all:
            each.before_step(plan)

    def after_step(self, done: TrainedStep, control: Control) -> None:
        for each in self.all:
            if control.is_final:
                return
            with self._telling(each, done.report.plan.step):
                each.after_step(done, control)

    def after_save(self, plan: StepPlan) -> None:
        self._tell_all(plan.step, lambda each: each.after_save(plan))

    def on_rewind(self, step: int) -> None:
        self._tell_all(step, lambda each: each.on_rewind(step))

    def on_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._tell_all(step, lambda each: each.on_picture(name, picture, step))

    def on_evaluation(self, figures: Mapping[str, float], step: int) -> None:
        self._tell_all(step, lambda each: each.on_evaluation(figures, step))

    def _tell_all(self, step: int, call: Callable[[Callback], None]) -> None:
        for each in self.all:
            with self._telling(each, step):
                call(each)

    def close(self) -> None:
        with ExitStack() as closing:
            # In their order, as the stack calls the last first; and all of them, whatever one raises.
            for each in reversed(self.all):
                closing.callback(each.close)

    @contextmanager
    def _telling(self, callback: Callback, step: int) -> Iterator[None]:
        """Say once that a display cannot write; any other callback's error passes."""
        try:
            yield
        except OSError as error:
            if not callback.is_display:
                raise
            name = callback.name
            if name not in self._failing:
                self._failing.add(name)
                self._log.event(DisplayFailed(step, observer=name, error=str(error)))
                self._log.say(f"{name} could not write: {error}; training goes on")
