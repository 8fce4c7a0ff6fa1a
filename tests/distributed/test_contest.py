"""Every setting of the contest gives the same losses in every world, and goes on bitwise where it was stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.distributed.recordings import Recording, record, tiny
from tests.distributed.test_elastic import train_some
from tests.small_run import final_files
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (3, 3, 6)
RELATIVE = 1e-4

_ALONE = ("model.discriminator.normalization=spectral", "model.discriminator.slope=0.2")
SETTINGS = {
    "hinge": (
        *_ALONE,
        "losses.adversarial=hinge",
        "losses.r1=1",
        "losses.penalty_every=2",
        "losses.instance_noise=0.1",
        "losses.feature_matching=0.1",
        "losses.total_variation=0.1",
        "phases.joint.balance=0.5",
        "phases.joint.balance_steps=3",
    ),
    "wasserstein": (
        "model.discriminator.normalization=none",
        "losses.adversarial=wasserstein",
        "losses.gradient_penalty=10",
    ),
    "least-squares-together": (
        "model.discriminator.batch_norm=together",
        "losses.adversarial=least_squares",
        "losses.feature_matching=0.1",
    ),
    "smoothed-perceptual": ("losses.label_smoothing=0.1", "losses.perceptual=0.01"),
}


def _overrides(shards: str, runs: Path, name: str, *extra: str) -> list[str]:
    # A learning rate that falls to 0 would leave what has no batch norm as it is in the last step.
    return tiny(shards, str(runs), steps=STEPS, extra=(*SETTINGS[name], "phases.joint.lr_schedule=constant", *extra))


def _is_smooth(name: str) -> bool:
    """A ReLU that rounding flips moves a loss by a last bit, but a penalty of its gradient by a hundredth, and what
    batch norm makes of real and completed photos together by some 1e-4.
    """
    return name in ("wasserstein", "least-squares-together")


@pytest.fixture(scope="module", params=SETTINGS)
def alone(
    request: pytest.FixtureRequest, faces_shards: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Recording]:
    """A setting's name, and its run on one rank."""
    overrides = _overrides(faces_shards, tmp_path_factory.mktemp("alone"), request.param)
    return request.param, run_world(1, record, overrides, _is_smooth(request.param))[0]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_setting_gives_the_same_losses_in_every_world_and_leaves_the_other_network_bitwise_as_it_was(
    alone: tuple[str, Recording], faces_shards: str, tmp_path: Path, stage: int
) -> None:
    name, known = alone
    overrides = _overrides(faces_shards, tmp_path, name, f"engine.zero_stage={stage}")
    ranks = run_world(2, record, overrides, _is_smooth(name))
    worst = 0.0
    for step, expected in enumerate(known.losses):
        assert ranks[0].losses[step] == ranks[1].losses[step]
        assert ranks[0].losses[step].keys() == expected.keys()
        for key, value in expected.items():
            # A mean of logits of either sign may come near zero: what fp32 rounds is a share of the logits then.
            difference = abs(ranks[0].losses[step][key] - value) / max(abs(value), 1e-2)
            worst = max(worst, difference)
            assert difference <= RELATIVE, f"step {step}: {key} is off by {difference:.1e}"
    print(f"{name}, ZeRO {stage}: losses agree to {worst:.1e}")
    for key, tensor in ranks[0].weights.items():
        assert tensor.equal(ranks[1].weights[key]), f"{key} differs between ranks"
    completion, discriminator = {"completion", "average"}, {"discriminator"}
    for rank in (known, *ranks):
        assert rank.changed == [completion] * 3 + [discriminator] * 3 + [completion | discriminator] * 6
        assert rank.traces == []


@pytest.mark.parametrize("stop_in", [7, 10])
def test_a_run_stopped_while_the_balance_is_measured_or_after_ends_bitwise_the_same(
    faces_shards: str, tmp_path: Path, stop_in: int
) -> None:
    def overrides(folder: str) -> list[str]:
        return tiny(faces_shards, str(tmp_path / folder), steps=STEPS, extra=("name=run", *SETTINGS["hinge"]))

    run_world(2, train_some, overrides("whole"), None)
    stopped = run_world(2, train_some, overrides("stopped"), stop_in)
    assert "SIGUSR2" in stopped[0][2]
    first, _, ending = run_world(2, train_some, overrides("stopped"), None)[0]
    assert first == stop_in + 1
    assert not ending
    expected = final_files(tmp_path / "whole" / "run", sum(STEPS))
    assert final_files(tmp_path / "stopped" / "run", sum(STEPS)) == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_discriminators_that_are_never_updated_stay_bitwise_as_they_were(
    faces_shards: str, tmp_path: Path, name: str
) -> None:
    extra = (*SETTINGS[name], "phases.joint.lr_schedule=constant", "phases.joint.discriminator_every=0")
    (seen,) = run_world(1, record, tiny(faces_shards, str(tmp_path), steps=(0, 0, 2), extra=extra))
    assert seen.changed == [{"completion", "average"}] * 2


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("extra", ["engine.precision=bf16", "engine.accumulation=2"])
def test_a_setting_trains_in_bf16_and_in_micro_batches(
    faces_shards: str, tmp_path: Path, name: str, extra: str
) -> None:
    overrides = tiny(faces_shards, str(tmp_path), steps=(1, 2, 3), extra=(*SETTINGS[name], extra))
    first, second = run_world(2, record, overrides)
    assert all(math.isfinite(value) for losses in first.losses for value in losses.values())
    for key, tensor in first.weights.items():
        assert tensor.isfinite().all()
        assert tensor.equal(second.weights[key]), f"{key} differs between ranks"
