"""What the ranks agree on besides the weights: to stop, to give up, to go back, what to write down."""

from __future__ import annotations

from typing import Any

from glci_dist.cluster.signals import StopRequest
from glci_dist.data.batch import Batch
from glci_dist.errors import Fault, Interrupted, UserError
from glci_dist.models.build import build_discriminators
from glci_dist.training.health import Trouble
from glci_dist.training.heartbeat import Report
from glci_dist.training.job import Job
from glci_dist.training.scalars import scalars

_FEWEST = 1000
"""Samples that the tolerance is reckoned on at the least: one bad photo in a first batch ends nothing."""


class Guard:
    """Reads reports and decides, equally on every rank, whether the run goes on.

    What it decides on comes from the heartbeat or from the averaged gradients, which all ranks
    share; so the rare extra collective, to gather names for the journal, meets every rank.
    """

    def __init__(self, job: Job, stop: StopRequest) -> None:
        self.ending: Exception | None = None
        """Why the run ends after this step, if it does."""
        self._job = job
        self._stop = stop

    def see(self, report: Report, batch: Batch | None) -> None:
        """Show a report to the observers and act on what the ranks said in it."""
        job, step = self._job, report.moment.step
        if report.superseded:
            self._end(job.attempt.superseded())
            return
        job.observe(report)
        if report.pulls is not None and not report.skipped:
            job.contest.balance.see(report.moment, *report.pulls)
        health = job.health
        health.samples += job.config.global_batch
        health.replaced += report.replaced
        if report.replaced and batch is not None:
            for rank in job.world.to_main(batch.replaced):
                for each in rank:
                    job.replaced.see(step, each)
                    job.journal("replaced", step, shard=each.shard, key=each.key, slot=each.slot, reason=each.reason)
        if report.remade and batch is not None:
            self._tell_remade(step, batch)
        tolerance = job.config.data.tolerance
        if health.replaced > tolerance * max(health.samples, _FEWEST):
            self._end(
                UserError(
                    f"{health.replaced} of {health.samples} samples did not decode, more than "
                    f"data.tolerance={tolerance}: {job.folder.journal} names them; "
                    "mend the shards or raise data.tolerance"
                )
            )
        if report.stop:
            names = job.world.to_all(self._stop.name)
            job.journal("signal", step, signals=names)
            said = ", ".join(sorted({name for name in names if name is not None}))
            self._end(Interrupted(f"stopped by {said} after step {step}"))

    def _tell_remade(self, step: int, batch: Batch) -> None:
        """Say and write down which loader workers were lost, of which rank, and to what."""
        world = self._job.world
        for rank, (host, reasons) in enumerate(world.to_main((world.host, batch.remade))):
            for reason in reasons:
                self._job.journal("worker-lost", step, rank=rank, on=host, reason=reason)
                self._job.tell(
                    f"step {step}: a loader worker of rank {rank} on {host} was lost ({reason}); its batch was made "
                    "again by new workers; if it happens often: fewer data.workers, a smaller data.prefetch"
                )

    def treat(self, report: Report) -> int | None:
        """Let the doctor look at the contest, and answer it; the next step, where the run went back to a checkpoint."""
        job, step = self._job, report.moment.step
        if report.superseded or report.skipped:
            return None
        # A run that a signal ends is judged too: what goes on later must know all that this one saw.
        found = job.doctor.see(report.moment, dict(scalars(report)))
        if found is None:
            return None
        finding, factors = found.finding, job.doctor.factors(report.moment)
        job.journal(
            "diagnosis",
            step,
            state=str(finding.state),
            evidence=list(finding.evidence),
            advice=finding.advice,
            answer=found.answer,
            **(factors if found.answer in ("balance", "rollback") else {}),
        )
        done = ", ".join(f"{name} x {factor:.3g}" for name, factor in factors.items())
        told = f"; balanced: {done}" if found.answer == "balance" else ""
        where = "contest" if report.moment.is_contest else f"phase {report.moment.phase}:"
        job.tell(f"step {step}: {where} {finding.line}{told}")
        if found.answer == "stop":
            self._end(Fault(f"step {step}: contest {finding.line} (doctor answered stop)"))
        elif found.answer == "rollback":
            if job.may_go_back():
                return self._go_back(step, pass_over=False)
            # What is saved now has their learning rate lowered, and counts them as begun anew.
            self._renew_if_due(step + 1)
            self._end(
                Fault(
                    f"step {step}: contest {finding.line}; {job.config.engine.rollbacks} rollbacks to the last "
                    "checkpoint (engine.rollbacks) did not help"
                )
            )
        else:
            self._renew_if_due(step + 1)
        return None

    def _go_back(self, step: int, *, pass_over: bool) -> int:
        """Go back to the last checkpoint, whose discriminators may be of before they began anew; the next step."""
        if isinstance(self.ending, Interrupted):
            # The step that follows is asked again, and ends the run with what it saves.
            self.ending = None
        back = self._job.go_back(step, pass_over=pass_over)
        self._renew_if_due(back)
        return back

    def _renew_if_due(self, step: int) -> None:
        """Put the discriminators back to what they were at the run's start before ``step``, as every rank does."""
        job = self._job
        if not job.doctor.is_renewal_due:
            return
        if step + job.config.doctor.window >= job.schedule.steps:
            job.doctor.is_renewal_due = False
            job.tell(f"step {step}: too few steps are left for discriminators that begin anew: these stay")
            return
        job.journal("renewed", step, network="discriminators")
        job.tell(f"step {step}: the discriminators begin anew, and have {job.config.doctor.window} steps to themselves")
        job.contest.discriminators.begin_anew(build_discriminators(job.config).state_dict())
        job.contest.balance.forget()
        job.health.forget("discriminator")
        job.doctor.let_learn_alone(step)

    def answer(self, trouble: Trouble | None, batch: Batch | None, step: int) -> int | None:
        """Answer updates that were not applied; the next step, where the run went back to a checkpoint."""
        if trouble is None or batch is None:
            return None
        job, engine = self._job, self._job.config.engine
        keys = [key for rank in job.world.to_main(batch.keys) for key in rank]
        # In fp16 an overflow now and then is how the loss scale finds its height.
        answer = "skip" if engine.precision == "fp16" and trouble.kind == "not-finite" else trouble.answer
        details: dict[str, Any] = {
            "networks": trouble.sides,
            "answer": answer,
            "norms": [str(norm) for norm in trouble.norms],
        }
        if trouble.kind == "spike":
            details["limits"] = trouble.limits
        job.journal(trouble.kind, step, **details, keys=keys)
        job.tell(
            f"step {step}: the gradient of the {' and the '.join(trouble.sides)} network {_what(trouble)}; "
            f"answer: {answer} (keys of its samples: {job.folder.journal})"
        )
        if answer == "stop" or job.health.skips >= engine.not_finite_limit:
            self._fail(step, f"{job.health.skips} step(s) in a row had a gradient that {_what(trouble)}")
        elif answer == "rollback" and self.ending is None:
            if job.may_go_back():
                return self._go_back(step, pass_over=True)
            self._fail(step, f"{engine.rollbacks} rollbacks to the last checkpoint (engine.rollbacks) did not help")
        return None

    def _fail(self, step: int, reason: str) -> None:
        self._end(
            Fault(
                f"step {step}: {reason}: see the journal for the samples; "
                "start another run (name=...) with lower learning rates or fp32"
            )
        )

    def _end(self, reason: Exception) -> None:
        # A signal asks for the same command again, and what cannot go on must not be.
        if self.ending is None or (isinstance(self.ending, Interrupted) and isinstance(reason, Fault)):
            self.ending = reason


def _what(trouble: Trouble) -> str:
    if trouble.kind == "not-finite":
        return "is not finite"
    norms = ", ".join(f"{norm:.3g} > {limit:.3g}" for norm, limit in zip(trouble.norms, trouble.limits, strict=True))
    return f"jumped (norm {norms})"
