"""What the ranks agree on besides the weights: to stop, to give up, what to write down."""

from __future__ import annotations

from glci_dist.cluster.signals import StopRequest
from glci_dist.data.batch import Batch, Replacement
from glci_dist.errors import Fault, Interrupted, UserError
from glci_dist.training.heartbeat import Report
from glci_dist.training.setup import Job
from glci_dist.training.updates import Measures

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
        self._seen = self._replaced = self._skips = 0
        self._replacements: dict[int, tuple[Replacement, ...]] = {}

    def check(self, measures: Measures, batch: Batch, step: int) -> None:
        """Answer an update that was not applied, at once; keep what the report will ask for."""
        self._replacements[step] = batch.replaced
        if not measures.skipped:
            self._skips = 0
            return
        self._skips += 1
        engine = self._job.config.engine
        keys = self._job.world.to_main(batch.keys)
        sides = [
            name
            for name, update in (
                ("completion", measures.completion),
                ("discriminator", measures.discriminator),
            )
            if update is not None and not update.applied
        ]
        self._job.journal(
            "not-finite",
            step,
            networks=sides,
            answer=engine.not_finite,
            keys=[key for rank in keys for key in rank],
        )
        self._job.tell(
            f"step {step}: the gradient of the {' and the '.join(sides)} network is not finite; "
            f"engine.not_finite={engine.not_finite} (keys of its samples: {self._job.folder.journal.path})"
        )
        # In fp16 an overflow now and then is how the loss scale finds its height.
        stops = engine.not_finite == "stop" and engine.precision != "fp16"
        if stops or self._skips >= engine.not_finite_limit:
            self._end(
                Fault(
                    f"step {step}: {self._skips} step(s) in a row had a gradient that is not finite; state saved: "
                    "see the journal for the samples; start another run (name=...) with lower learning rates or fp32"
                )
            )

    def see(self, report: Report | None) -> None:
        """Show a report to the observers and act on what the ranks said in it."""
        if report is None:
            return
        self._job.observe(report)
        step = report.moment.step
        replacements = self._replacements.pop(step, ())
        self._seen += self._job.config.global_batch
        self._replaced += report.replaced
        if report.replaced:
            for rank in self._job.world.to_main(replacements):
                for each in rank:
                    self._job.journal(
                        "replaced", step, shard=each.shard, key=each.key, slot=each.slot, reason=each.reason
                    )
        tolerance = self._job.config.data.tolerance
        if self._replaced > tolerance * max(self._seen, _FEWEST):
            self._end(
                UserError(
                    f"{self._replaced} of {self._seen} samples did not decode, more than data.tolerance={tolerance}: "
                    f"{self._job.folder.journal.path} names them; mend the shards or raise data.tolerance"
                )
            )
        # The last step's report, read at the end, tells of the same stop once more.
        if report.stop and not isinstance(self.ending, Interrupted):
            names = self._job.world.to_main(self._stop.name)
            self._job.journal("signal", step, signals=names)
            self._end(
                Interrupted(f"stopped by a signal at step {step}; the state is saved: run the same command again")
            )

    def _end(self, reason: Exception) -> None:
        self.ending = self.ending or reason
