"""Callbacks, which follow the training step by step and extend it without changing the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from glci_dist.data.batch import Batch
from glci_dist.errors import Fault, Interrupted, Superseded
from glci_dist.runs.events import DisplayFailed
from glci_dist.training.gan_step import GradientNormLimits, StepMeasurements
from glci_dist.training.phases import StepPlan
from glci_dist.training.run_log import RunLog
from glci_dist.training.step_report import StepReport


@dataclass(frozen=True)
class TrainedStep:
    """A finished step."""

    report: StepReport
    """Reduced over ranks, the same on every rank; ``report.plan`` is what the step had to do."""
    batch: Batch | None
    """This rank's; None if the step is skipped."""
    measures: StepMeasurements
    """This rank's."""
    limits: GradientNormLimits
    """The gradient norms beyond which no update was applied."""


class Control:
    """The decision whether the run continues after a step, ends, or rolls back; the same on every rank."""

    def __init__(self) -> None:
        self.ending: Exception | None = None
        """Why the run ends after this step, if it does."""
        self._back_to: int | None = None

    @property
    def is_superseded(self) -> bool:
        """Whether the run ends at once, without writing anything, as a newer attempt owns it."""
        return isinstance(self.ending, Superseded)

    @property
    def is_final(self) -> bool:
        """Whether later callbacks do not get this step."""
        return self.is_superseded or self._back_to is not None

    def end(self, reason: Exception) -> None:
        """End the run after this step. The first reason is kept; but a fault replaces a signal, and a newer attempt
        replaces all.
        """
        # After a signal the same command is run again, which would not help after a fault.
        is_graver = isinstance(self.ending, Interrupted) and isinstance(reason, Fault)
        if self.ending is None or is_graver or isinstance(reason, Superseded):
            self.ending = reason

    def go_back(self, step: int) -> None:
        """Continue from ``step``, whose checkpoint has been loaded."""
        if isinstance(self.ending, Interrupted):
            # The signal is seen again after the next step, which ends the run and saves.
            self.ending = None
        self._back_to = step

    def take_rollback_step(self) -> int | None:
        """The step to roll back to, once; None: no rollback."""
        step, self._back_to = self._back_to, None
        return step


class Callback:
    """Base of callbacks: does nothing; override what you need. A callback is on every rank, or on rank 0 alone.

    One that is on every rank may use collectives, as all ranks call it at the same step.
    """

    is_display: ClassVar[bool] = False
    """It only displays the run: an ``OSError`` is reported once, and training continues."""

    @property
    def name(self) -> str:
        """The name under which a display's errors are reported."""
        return type(self).__name__

    def on_start(self, step: int) -> None:
        """Called before the attempt's first step, ``step``, when all state is loaded."""

    def adjust(self, plan: StepPlan) -> StepPlan:
        """The plan of the next step: ``plan``, or a changed copy; the same on every rank."""
        return plan

    def before_step(self, plan: StepPlan) -> None:
        """Called before the step's batch is loaded."""

    def after_step(self, done: TrainedStep, control: Control) -> None:
        """Called after the step, unless an earlier callback made the run roll back or end at once."""

    def after_save(self, plan: StepPlan) -> None:
        """Called after the start of the step's save, if one was due, unless the run ends before its last step."""

    def on_rewind(self, step: int) -> None:
        """Called after a rollback: the run continues from ``step``; what was shown of it and later steps is void."""

    def on_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Called with a picture ``(H, W, 3)``, uint8, that was drawn after ``step``. On rank 0."""

    def on_evaluation(self, figures: Mapping[str, float], step: int) -> None:
        """Called after an evaluation at ``step``; ``figures``: metrics by their names in evaluation.json. On rank 0."""

    def close(self) -> None:
        """Called at the end of the run, however it ends."""

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint keeps of it (``Stateful``); override both or none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore what ``state_dict`` returned."""


class Callbacks:
    """The callbacks of a run, called in order."""

    def __init__(self, callbacks: Sequence[Callback], log: RunLog) -> None:
        self.all = list(callbacks)
        self._log = log
        self._failing: set[str] = set()

    def on_start(self, step: int) -> None:
        self._call_all(step, lambda each: each.on_start(step))

    def adjust(self, plan: StepPlan) -> StepPlan:
        for each in self.all:
            if not each.is_display:
                plan = each.adjust(plan)
        return plan

    def before_step(self, plan: StepPlan) -> None:
        self._call_all(plan.step, lambda each: each.before_step(plan))

    def after_step(self, done: TrainedStep, control: Control) -> None:
        for each in self.all:
            if control.is_final:
                return
            with self._reporting_errors(each, done.report.plan.step):
                # A display is on rank 0 alone: what it decides would part the ranks.
                each.after_step(done, Control() if each.is_display else control)

    def after_save(self, plan: StepPlan) -> None:
        self._call_all(plan.step, lambda each: each.after_save(plan))

    def on_rewind(self, step: int) -> None:
        self._call_all(step, lambda each: each.on_rewind(step))

    def on_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._call_all(step, lambda each: each.on_picture(name, picture, step))

    def on_evaluation(self, figures: Mapping[str, float], step: int) -> None:
        self._call_all(step, lambda each: each.on_evaluation(figures, step))

    def _call_all(self, step: int, call: Callable[[Callback], None]) -> None:
        for each in self.all:
            with self._reporting_errors(each, step):
                call(each)

    def close(self) -> None:
        with ExitStack() as closing:
            # Reversed, as the stack calls the last first. It calls all of them, even if one raises.
            for each in reversed(self.all):
                closing.callback(self._close, each)

    def _close(self, callback: Callback) -> None:
        with suppress(OSError) if callback.is_display else nullcontext():
            callback.close()

    @contextmanager
    def _reporting_errors(self, callback: Callback, step: int) -> Iterator[None]:
        """Report a display's ``OSError`` once; errors of other callbacks propagate."""
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
