"""How a change of the phases moves the step at which a run resumes; printed before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from glci_dist.config import PhaseConfig
from glci_dist.training.phases import Schedule, StepPlan, learning_rate_factor


def schedule_changes(step: int, before: Mapping[str, PhaseConfig], now: Mapping[str, PhaseConfig]) -> list[str]:
    """The effects of changed phases on a run that resumes at ``step``, a line each; empty: none."""
    return list(_changes(step, before, now))


def _changes(step: int, before: Mapping[str, PhaseConfig], now: Mapping[str, PhaseConfig]) -> Iterator[str]:
    old, new = Schedule(before), Schedule(now)
    was, there = _at(old, step), _at(new, step)
    if not old.steps or (was is None and there is None):
        return
    stood = f"was in {_place(was, before)}" if was else f"was at the schedule's end ({old.steps} steps)"
    if there is None:
        assert was is not None
        yield f"step {step} {stood}, lies at or beyond the end of the {new.steps} steps now: no step is left to run"
        return
    place = (there.phase, there.phase_step)
    if was is None or place != (was.phase, was.phase_step):
        stands = f"step {step} {stood}, is in {_place(there, now)} now"
        yield f"{stands}, {now[there.phase].steps - there.phase_step} steps to go in it"
        ended = old.at(old.steps - 1)
        yield from _skipped(there, *((was.phase, was.phase_step) if was else (ended.phase, ended.phase_step + 1)))
        return
    if now[there.phase].steps != before[was.phase].steps:
        had, has = (phases[there.phase].steps - there.phase_step for phases in (before, now))
        yield f"step {step} is in {_place(there, now)} as before, with {has} steps to go in it where {had} were"
    factors = [learning_rate_factor(phases[there.phase], there.phase_step) for phases in (before, now)]
    if factors[0] != factors[1]:
        yield (
            f"phase {there.phase}'s schedule puts the learning rates of step {step} at {factors[1]:.3g} of their "
            f"peak now, {factors[0]:.3g} before"
        )


def _skipped(there: StepPlan, was_phase: str, was_step: int) -> Iterator[str]:
    """The steps of the new phase that are never run."""
    begun = was_step if there.phase == was_phase else 0
    if there.phase_step > begun:
        measured = there.balance and begun < there.balance_steps <= there.phase_step
        after = ", those that its balance is measured on among them: it is measured from here on" if measured else ""
        yield f"steps {begun} to {there.phase_step - 1} of phase {there.phase} are passed by{after}"


def _at(schedule: Schedule, step: int) -> StepPlan | None:
    return schedule.at(step) if step < schedule.steps else None


def _place(plan: StepPlan, phases: Mapping[str, PhaseConfig]) -> str:
    return f"phase {plan.phase} (step {plan.phase_step} of {phases[plan.phase].steps})"
