"""What TensorBoard, the progress line and the pictures show is what the reports said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from glci_dist import compose
from glci_dist.config import Config, LossConfig, PhaseConfig
from glci_dist.diagnosis.states import Finding, State
from glci_dist.runs.ledger import KINDS
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.callbacks.logging import STATES, Gauge, Logging, memory_gauges
from glci_dist.training.callbacks.progress import Progress
from glci_dist.training.gan_step import (
    ADVERSARIAL_GRADIENT,
    NO_NORM_LIMITS,
    RECONSTRUCTION_GRADIENT,
    GanTrainStep,
    StepMeasurements,
)
from glci_dist.training.loggers.tensorboard import TensorBoard
from glci_dist.training.metric_registry import Metric, MetricRegistry
from glci_dist.training.phases import Schedule, StepPlan
from glci_dist.training.scalars import DERIVED_METRICS
from glci_dist.training.step_report import StepReport
from glci_dist.training.train import train
from tests.small_run import small
from tests.worlds import run_world

Judged = Callable[[], tuple[int, Finding] | None]

PHASES = {
    "completion": PhaseConfig(steps=5, completion_every=1, completion_lr=0.5),
    "joint": PhaseConfig(steps=4, completion_every=2, discriminator_every=1, discriminator_lr=0.25),
}
ALWAYS = {
    "phase/number",
    "time/step_seconds",
    "time/slowest_host_ratio",
    "time/slowest_rank_ratio",
    "time/data_share",
    "time/communication_share",
    "time/compute_share",
    "speed/images_per_second",
    "data/replaced_samples",
    "updates/skipped",
    "memory/peak_rank0_gib",
}
OF_COMPLETION = {
    "loss/reconstruction",
    "gradient_norm/completion",
    "learning_rate/completion",
    "contest/lattice",
    "contest/lattice_of_photos",
    "contest/diversity",
    "contest/diversity_of_photos",
    "contest/batch_norm_gap",
}
OF_DISCRIMINATOR = {
    "loss/real",
    "loss/completed",
    "accuracy/real",
    "accuracy/completed",
    "contest/margin",
    "gradient_norm/discriminator",
    "learning_rate/discriminator",
}
OF_CONTEST = {
    "contest/hole_share",
    "loss/adversarial",
    "gradient_at_output/reconstruction",
    "gradient_at_output/adversarial",
    "phase/alpha",
}


STEP_METRICS = GanTrainStep(None, None, losses=LossConfig(), accumulation=1).metrics  # type: ignore[arg-type]
METRICS = MetricRegistry([*STATES, *STEP_METRICS, *DERIVED_METRICS])


def logging(folder: Path, config: Config, *, first_step: int = 0, last_finding: Judged = lambda: None) -> Logging:
    """What writes reports to TensorBoard, begun."""
    gauges = (*memory_gauges(torch.device("cpu")), Gauge(Metric("time/slowest_host_ratio"), lambda: 1.0))
    made = Logging(TensorBoard(folder), config, METRICS, gauges=gauges, last_finding=last_finding)
    made.on_start(first_step)
    return made


def _statistics(plan: StepPlan) -> dict[str, float]:
    found: dict[str, float] = {}
    if plan.updates_completion:
        found |= dict.fromkeys((tag for tag in OF_COMPLETION if tag.startswith("contest/")), 0.25)
    return found | ({"contest/margin": 0.5} if plan.updates_discriminator else {})


def reports() -> list[StepReport]:
    """What two ranks might say of each step: its losses are its number, in some way."""
    made = []
    schedule = Schedule(PHASES, global_batch=8)
    for step in range(schedule.steps):
        plan = schedule.at(step)
        values = _statistics(plan)
        if plan.updates_completion:
            values["loss/reconstruction"] = float(step)
        if plan.updates_completion and plan.alpha:
            values |= {RECONSTRUCTION_GRADIENT.name: 3.0, ADVERSARIAL_GRADIENT.name: 4.0}
        if plan.updates_discriminator:
            values |= {"loss/real": 10.0 * step, "loss/completed": 1.0}
            values |= {"accuracy/real": 0.75, "accuracy/completed": 1.0}
        made.append(
            StepReport(
                plan=plan,
                values=values,
                alpha=0.5 if plan.updates_completion else None,
                completion_norm=2.0 * step if plan.updates_completion else None,
                discriminator_norm=3.0 * step if plan.updates_discriminator else None,
                skipped=step == 3,
                step_seconds=(0.1, 0.3),
                own_seconds=(0.1, 0.2),
                data_seconds=0.02,
                collective_seconds=0.05,
                replaced=2 if step == 1 else 0,
                stop=False,
                stall_seconds=0.0,
                superseded=False,
            )
        )
    return made


def show(callback: Callback, report: StepReport) -> None:
    callback.after_step(TrainedStep(report, None, StepMeasurements(), NO_NORM_LIMITS), Control())


def read(folder: Path) -> EventAccumulator:
    """The event files, as TensorBoard reads them."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def scalars(events: EventAccumulator) -> dict[int, dict[str, float]]:
    """For each step at which something was written, its tags and values."""
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert tag not in found.get(event.step, {}), f"{tag} was written twice for step {event.step}"
            found.setdefault(event.step, {})[tag] = event.value
    return found


@pytest.fixture
def written(tmp_path: Path) -> dict[int, dict[str, float]]:
    """The scalars of ``reports``, written every 3 steps."""
    config = compose.load(["data.shards=x", "monitor.scalars_every=3", "global_batch=8"])
    board = logging(tmp_path, config)
    for report in reports():
        show(board, report)
    board.close()
    return scalars(read(tmp_path))


def test_scalars_are_written_at_their_steps_and_at_each_phases_end(written: dict[int, dict[str, float]]) -> None:
    assert sorted(written) == [2, 4, 5, 8]


def test_each_phase_writes_the_tags_of_what_it_updates(written: dict[int, dict[str, float]]) -> None:
    for step in (2, 4):
        assert written[step].keys() == ALWAYS | OF_COMPLETION
    # Step 5 is the first of a phase that updates the completion network at every second step only.
    assert written[5].keys() == ALWAYS | OF_DISCRIMINATOR
    # A contest's weight is shown even where it is 0, so that it can be told from a contest that is none.
    assert written[8].keys() == ALWAYS | OF_COMPLETION | OF_DISCRIMINATOR | {"phase/alpha"}


def test_values_are_means_since_the_last_writing(written: dict[int, dict[str, float]]) -> None:
    assert [written[step]["loss/reconstruction"] for step in (2, 4, 8)] == [1.0, 3.5, 7.0]
    assert [written[step]["gradient_norm/completion"] for step in (2, 4, 8)] == [2.0, 7.0, 14.0]
    assert [written[step]["loss/real"] for step in (5, 8)] == [50.0, 70.0]
    assert written[8]["accuracy/real"] == 0.75
    assert written[8]["learning_rate/discriminator"] == 0.25
    assert [written[step]["learning_rate/completion"] for step in (2, 8)] == [0.5, 0.0]
    assert [written[step]["phase/number"] for step in (2, 4, 5, 8)] == [0, 0, 1, 1]


def test_skipped_updates_and_replaced_samples_are_counted_over_the_run(written: dict[int, dict[str, float]]) -> None:
    assert [written[step]["data/replaced_samples"] for step in (2, 4, 8)] == [2, 2, 2]
    assert [written[step]["updates/skipped"] for step in (2, 4, 8)] == [0, 1, 1]


def test_time_is_shared_out_over_data_compute_and_communication(written: dict[int, dict[str, float]]) -> None:
    for values in written.values():
        assert values["time/step_seconds"] == pytest.approx(0.2)
        assert values["time/slowest_rank_ratio"] == pytest.approx(1.5)
        assert values["time/data_share"] == pytest.approx(0.1)
        assert values["time/communication_share"] == pytest.approx(0.25)
        assert values["time/compute_share"] == pytest.approx(0.65)
        assert values["speed/images_per_second"] > 0
        assert 0.05 < values["memory/peak_rank0_gib"] < 100


def test_a_resumed_run_replaces_what_was_written_after_its_first_step(tmp_path: Path) -> None:
    config = compose.load(["data.shards=x", "monitor.scalars_every=1"])
    for first_step, end, factor in ((0, 5, 1.0), (3, 4, 100.0)):
        board = logging(tmp_path, config, first_step=first_step)
        for report in reports()[first_step:end]:
            report.values["loss/reconstruction"] *= factor
            show(board, report)
        board.close()

    values = {step: found["loss/reconstruction"] for step, found in scalars(read(tmp_path)).items()}
    assert values == {0: 0, 1: 1, 2: 2, 3: 300}


def test_the_state_of_a_contest_is_a_panel_with_its_names_and_a_text_where_it_changes(tmp_path: Path) -> None:
    asleep = Finding(State.ASLEEP, ("tells 50%",), "raise its learning rate")
    healthy = Finding(State.HEALTHY, ("tells 80%",), "nothing to change")
    judged: list[tuple[int, Finding] | None] = [None]
    config = compose.load(["data.shards=x", "monitor.scalars_every=1"])
    board = logging(tmp_path, config, last_finding=lambda: judged[-1])
    for report in reports():
        # The doctor judges a step after it was shown.
        show(board, report)
        judged.append({5: (5, asleep), 7: (7, asleep), 8: (8, healthy)}.get(report.plan.step, judged[-1]))
    board.close()

    events = read(tmp_path)
    names = {f"doctor/{state}" for state in State}
    states = {step: {tag: found[tag] for tag in names & found.keys()} for step, found in scalars(events).items()}
    # What was judged at the last step, which may have ended the run, is shown too.
    for step, state in ((5, "discriminator asleep"), (7, "discriminator asleep"), (8, "healthy")):
        assert states.pop(step) == {name: float(name == f"doctor/{state}") for name in names}
    assert set(map(len, states.values())) == {0}
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors("doctor/text_summary")]
    assert texts == [(5, asleep.line), (8, healthy.line)]


@pytest.mark.distributed
def test_every_chart_of_the_panel_shows_what_a_run_writes(faces_shards: str, tmp_path: Path) -> None:
    extra = ("phases.joint.alpha=1e-3", "phases.joint.completion_lr=1e-4", "doctor.window=2", "doctor.every=2")
    run_world(1, run_all, small(faces_shards, tmp_path, steps=(1, 1, 4), extra=("monitor.scalars_every=1", *extra)))

    events = read(tmp_path / "run" / "tensorboard")
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (panel,) = layout.category
    shown = {tag for chart in panel.chart for tag in chart.multiline.tag}
    assert len(shown) > 15
    assert shown <= set(events.Tags()["scalars"])


def test_a_run_that_goes_back_to_its_start_keeps_panel_and_configuration(tmp_path: Path) -> None:
    config = compose.load(["data.shards=x", "monitor.scalars_every=1"])
    board = logging(tmp_path, config)
    show(board, reports()[0])
    board.on_rewind(0)
    board.close()

    events = read(tmp_path)
    assert sorted(events.Tags()["tensors"]) == [
        "configuration/text_summary",
        "custom_scalars__config__",
        "metrics/text_summary",
    ]
    assert not scalars(events)


def test_the_progress_line_tells_phase_step_speed_time_left_and_losses(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(METRICS, Schedule(PHASES, global_batch=8), first_step=0)
    for report in reports():
        show(progress, report)
    progress.close()

    lines = capsys.readouterr().out.splitlines()
    # Without a terminal: at the start of each phase and at the end; else every 30 s.
    assert [line.split(",")[0] for line in lines] == ["completion: step 1/9", "joint: step 6/9", "joint: step 9/9"]
    # The speed of a phase is that after its first step, as soon as there is one.
    assert [" img/s, " in line for line in lines] == [False, False, True]
    assert [" min left, " in line for line in lines] == [False, True, True]
    assert lines[0].endswith("reconstruction 0")
    assert lines[2].endswith("reconstruction 8 real loss 80 completed loss 1 real accuracy 0.75 completed accuracy 1")
    assert "0.0 min left" in lines[2]


def test_the_time_left_of_the_progress_line_counts_pixels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("glci_dist.training.callbacks.progress.time.perf_counter", lambda: clock[0])
    # The steps of the second phase have twice the pixels.
    phases = {"coarse": PhaseConfig(steps=30, size=32, batch=16), "fine": PhaseConfig(steps=30)}
    schedule = Schedule(phases, global_batch=8, size=64)
    progress = Progress(METRICS, schedule, first_step=0)
    for step in range(40):
        # The first step of a phase takes longer.
        clock[0] += (6 if step < 30 else 18) + 30 * (step % 30 == 0)
        show(progress, replace(reports()[0], plan=schedule.at(step)))
    progress.close()

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("coarse: step 1/60, reconstruction")
    # 24 more such steps, and 30 that count twice, at 6 s.
    assert lines[1].startswith("coarse: step 6/60, 3 img/s, 8.4 min left")
    # 29 more steps; those before, without the first, took 29 x 6 + 30 + 18 s for 31 times the pixels of a coarse step.
    assert [line for line in lines if line.startswith("fine: step 31/60, 6.9 min left")], lines
    assert [line for line in lines if line.startswith("fine: step 33/60, 0 img/s, ")], lines


def run_all(overrides: list[str]) -> None:
    train(compose.load(overrides))


@pytest.mark.distributed
def test_a_run_writes_scalars_pictures_and_its_configuration_from_rank_0_alone(
    faces_shards: str, tmp_path: Path
) -> None:
    watching = ("monitor.scalars_every=2", "monitor.pictures_every=2", "monitor.pictures=3")
    run_world(2, run_all, small(faces_shards, tmp_path, steps=(3, 2, 2), extra=watching))

    folder = tmp_path / "run"
    assert len(list((folder / "tensorboard").iterdir())) == 1
    events = read(folder / "tensorboard")
    values = scalars(events)
    goodput = {f"goodput/{kind}" for kind in (*KINDS, "lost", "restart")}
    for found in values.values():
        assert sum(found.pop(tag) for tag in goodput) == pytest.approx(1, abs=1e-4)
    assert sorted(values) == [1, 2, 3, 4, 5, 6]
    assert values[1].keys() == values[2].keys() == ALWAYS | OF_COMPLETION
    assert values[3].keys() == values[4].keys() == ALWAYS | OF_DISCRIMINATOR
    assert values[6].keys() == ALWAYS | OF_COMPLETION | OF_DISCRIMINATOR | OF_CONTEST
    for found in values.values():
        assert np.isfinite(list(found.values())).all()

    # Every second step and each phase's end.
    names = sorted(path.name for path in (folder / "pictures").iterdir())
    assert names == [f"step-{step:08d}.png" for step in (2, 3, 4, 5, 6, 7)]
    shown = [np.asarray(Image.open(folder / "pictures" / name)) for name in names]
    # Three faces high and photo, hole, output, completed wide, 32 px each at twice their size.
    assert all(picture.shape[0] >= 3 * 64 and picture.shape[1] >= 4 * 64 for picture in shown)
    assert not np.array_equal(shown[0], shown[-1])
    assert [event.step for event in events.Images("pictures")] == [1, 2, 3, 4, 5, 6]

    assert sorted(events.Tags()["tensors"]) == [
        "configuration/text_summary",
        "custom_scalars__config__",
        "metrics/text_summary",
    ]
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "seed: 0" in text
    assert faces_shards in text
