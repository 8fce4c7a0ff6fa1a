"""However an attempt ends after it took the lease, the journal and `glci status` say why."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from glci_dist import compose
from glci_dist.checkpoints.manifest import MANIFEST_FILE, Manifest, folders, read
from glci_dist.config import PhaseConfig
from glci_dist.errors import Ending
from glci_dist.runs import attempts
from glci_dist.slurm.run_status import read_status
from glci_dist.slurm.status import lines
from glci_dist.training.phases import Schedule
from glci_dist.training.train import train
from tests.journal import read_journal
from tests.small_run import small
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (8, 2, 2)


def ending(overrides: list[str]) -> str:
    """How training ends, in words; empty where it is done."""
    try:
        train(compose.load(overrides))
    except Ending as ended:
        return f"{type(ended).__name__}: {ended}"
    except Exception as broken:
        return f"traceback of {type(broken).__name__}"
    return ""


def ending_of_an_error(overrides: list[str], rank: int, error: BaseException) -> str:
    """The same, with ``error`` raised in a step of one rank."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "glci.step" and arguments == (3,) and os.environ["RANK"] == str(rank):
            raise error

    sys.addaudithook(hook)
    return ending(overrides)


def status(run: Path) -> str:
    return "\n".join(lines(read_status(run), Schedule({"all": PhaseConfig(steps=sum(STEPS))}, global_batch=4, size=64)))


@pytest.fixture(scope="module")
def finished(faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs' folder of a finished run, with its checkpoints of steps 8, 10 and 12."""
    runs = tmp_path_factory.mktemp("finished")
    assert run_world(1, ending, small(faces_shards, runs, steps=STEPS)) == [""]
    return runs


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, as it was before its last two steps."""
    copy = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / "step-00000012")
    return copy


def rewrite(checkpoint: Path, old: str, new: str) -> None:
    """Have the configuration that a checkpoint was saved under say something else."""
    manifest = read(checkpoint).manifest
    facts = {**manifest.facts, "config": manifest.facts["config"].replace(old, new)}
    assert facts != manifest.facts
    changed = Manifest(**{**vars(manifest), "facts": facts})
    (checkpoint / MANIFEST_FILE).write_bytes(changed.encode())


def test_what_cannot_go_on_is_in_the_journal_and_in_the_status(run: Path, faces_shards: str) -> None:
    for _, path in folders(run / "checkpoints"):
        (path / "networks.safetensors").write_bytes(b"")
    (said,) = run_world(1, ending, small(faces_shards, run.parent, steps=STEPS))
    assert said.startswith("Fault: none of the 2 checkpoint(s)")
    last = read_journal(run)[-1]
    assert (last["event"], last["attempt"]) == ("failed", 2)
    assert last["reason"] == said.removeprefix("Fault: ")
    told = status(run)
    assert "failed: none of the 2 checkpoint(s)" in told
    assert "running" not in told
    assert "killed, or its host was lost" not in told


def test_a_refusal_by_the_newest_checkpoint_comes_before_the_lease_and_fences_nobody_off(
    run: Path, faces_shards: str
) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 5"))
    before = status(run)
    (said,) = run_world(1, ending, small(faces_shards, run.parent, steps=STEPS, extra=("seed=5",)))
    assert "belongs to another configuration (there / here): seed: 0 / 5" in said
    assert attempts.numbers(run) == [1]
    assert not attempts.Attempt(run, 1).is_over()
    assert status(run) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_a_rank_is_in_the_journal_with_its_type_its_rank_and_its_words(
    faces_shards: str, tmp_path: Path, rank: int
) -> None:
    overrides = small(faces_shards, tmp_path, steps=STEPS)
    said = run_world(2, ending_of_an_error, overrides, rank, ValueError("the device\nfell off the bus"))
    assert said[rank] == "traceback of ValueError"
    last = read_journal(tmp_path / "run")[-1]
    assert last["event"] == "failed"
    assert last["step"] == 3
    assert f"rank {rank} on " in last["reason"]
    assert "ValueError: the device" in last["reason"]
    assert "ValueError: the device" in status(tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(MemoryError(), "Fault: rank 0 on"), (SystemExit(7), ""), (KeyboardInterrupt(), "")],
    ids=["memory", "exit", "interrupt"],
)
def test_so_are_those_that_are_no_ordinary_errors(
    faces_shards: str, tmp_path: Path, error: BaseException, kind: str
) -> None:
    overrides = small(faces_shards, tmp_path, steps=STEPS)
    if kind:
        (said,) = run_world(1, ending_of_an_error, overrides, 0, error)
        assert said.startswith(kind)
        assert "out of memory" in said
        assert "engine.accumulation" in said
    else:
        with pytest.raises(AssertionError, match=type(error).__name__):
            run_world(1, ending_of_an_error, overrides, 0, error)
    last = read_journal(tmp_path / "run")[-1]
    assert last["event"] == "failed"
    assert type(error).__name__ in last["reason"]
