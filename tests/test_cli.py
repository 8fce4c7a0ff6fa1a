"""What a wrong command costs: one line that names the mistake, exit code 2, and nothing lost or half made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glci_dist.cli import main
from glci_dist.data.index import table_name
from tests.worlds import free_port, launcher_environment

_TINY = (
    *("engine.device=cpu", "name=run", "monitor.pictures_every=0", "global_batch=4", "data.workers=0"),
    *("model.completion.width=0.05", "model.discriminator.width=0.05"),
    *("phases.coarse.steps=0", "phases.completion.steps=2", "phases.discriminator.steps=0", "phases.joint.steps=0"),
)

Glci = Callable[..., str]


def _is_one_line(stderr: str) -> bool:
    return stderr.startswith("glci: error: ") and stderr.count("\n") == 1 and stderr.endswith("\n")


def _state(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def _start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "glci_dist", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        stdout, stderr = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Glci:
    """Runs a command that must be refused with one line; returns the line."""
    # A mistake is found before the seconds that DeepSpeed takes to import: importing it would fail here.
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert _is_one_line(stderr), stderr
        return stderr

    return run


@pytest.fixture
def own_shards(faces_shards: str, tmp_path: Path) -> Path:
    """A copy of the shards that a test may spoil."""
    return Path(shutil.copytree(faces_shards, tmp_path / "shards"))


@pytest.fixture(scope="module")
def finished_run(faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run of 2 steps, trained by the command line."""
    runs = tmp_path_factory.mktemp("runs")
    code, _, stderr = _end(_start("train", *_TINY, f"data.shards={faces_shards}", f"runs={runs}"))
    assert code == 0, stderr
    return runs / "run"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("data.size=66 data.short_edge=[66,70]", "data.size=66 is not a multiple of 4"),
        ("holes.max_side=65 holes.patch=64", "holes.max_side=65 is larger than the photo (data.size=64)"),
        ("holes.patch=68", "holes.patch=68 is larger than the photo"),
        ("holes.max_side=44", "holes.max_side=44 is larger than the local patch (holes.patch=40)"),
        ("data.order.lanes=3", "data.order.lanes=3 does not divide global_batch=4"),
        ("engine.accumulation=3", "global_batch=4 is not a multiple of 3 (1 ranks x engine.accumulation=3)"),
        ("global_batch=100", "the corpus has 96 samples, fewer than a batch of 100"),
        ("global_bach=4", "global_bach is no configuration key: did you mean global_batch?"),
        ("global_batch=many", "global_batch must be a whole number"),
        ("experiment=faces63", "choose one of demo, faces128"),
        ("engine.precision=fp8", "engine.precision=fp8 is not known: choose one of bf16, fp16, fp32"),
        ("engine.precision=fp16", "engine.precision=fp16 needs a GPU: on a CPU choose bf16 or fp32"),
        ("engine.zero_stage=2", "engine.zero_stage=2 is refused"),
        ("data.val=/nowhere", "no shards: /nowhere"),
        ("model.completion.kind=context_encoder data.size=100 data.short_edge=[100,100]", "data.size=100 cannot be"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line_and_leaves_no_run(
    refusal: Glci, faces_shards: str, tmp_path: Path, overrides: str, said: str
) -> None:
    line = refusal("train", *_TINY, f"data.shards={faces_shards}", f"runs={tmp_path / 'runs'}", *overrides.split())
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_one_line(
    refusal: Glci, faces_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    overrides = (f"data.shards={faces_shards}", f"runs={tmp_path / 'runs'}", "engine.device=cuda")
    assert "engine.device=cuda, but torch sees no GPU here" in refusal("train", *_TINY, *overrides)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_without_a_gpu_of_its_own_says_so_itself(
    refusal: Glci, faces_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rank 0 has one, and waits for it.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    # More than any machine has.
    for name, value in launcher_environment(99, 100, free_port()).items():
        monkeypatch.setenv(name, value)
    overrides = (f"data.shards={faces_shards}", f"runs={tmp_path / 'runs'}", "engine.device=cuda")
    assert "LOCAL_RANK=99 on a machine of " in refusal("train", *_TINY, *overrides)


def _grow(folder: Path) -> None:
    with (folder / "shard-000002.tar").open("ab") as file:
        file.write(bytes(512))


def _cut(folder: Path) -> None:
    path = folder / "shard-000002.tar"
    os.truncate(path, path.stat().st_size // 2)


def _swap_tables(folder: Path) -> None:
    one, other = (folder / table_name(f"shard-00000{number}.tar") for number in (2, 3))
    aside = one.rename(folder / "aside")
    other.rename(one)
    aside.rename(other)


def _change_table(folder: Path) -> None:
    path = folder / table_name("shard-000002.tar")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_grow, "shard-000002.tar: is changed"),
        (_cut, "shard-000002.tar: is cut"),
        (_swap_tables, "does not match its index"),
        (_change_table, "shard-000002.tar does not match its index"),
        (lambda folder: (folder / "shard-000002.tar").unlink(), "shard-000002.tar: is missing"),
        (lambda folder: (folder / table_name("shard-000002.tar")).unlink(), "is missing"),
        (lambda folder: (folder / "index.json").write_text("{}"), "index.json is malformed"),
        (lambda folder: (folder / "index.json").unlink(), "are not finished; run the same `glci shards build` again"),
        (_empty, "holds no index.json and no tar"),
    ],
    ids=["grown", "cut", "tables swapped", "table changed", "no tar", "no table", "bad index", "no index", "empty"],
)
def test_shards_that_are_not_as_their_index_says_are_one_line_and_leave_no_run(
    refusal: Glci, own_shards: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(own_shards)
    line = refusal("train", *_TINY, f"data.shards={own_shards}", f"runs={tmp_path / 'runs'}")
    assert said in line
    assert str(own_shards) in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("location", "said"),
    [("/nowhere", "/nowhere is no folder"), ("pipe:cat x", "refused"), ("ftp://host/x", "refused")],
)
def test_no_shards_is_one_line_and_leaves_no_run(refusal: Glci, tmp_path: Path, location: str, said: str) -> None:
    assert said in refusal("train", *_TINY, f"data.shards='{location}'", f"runs={tmp_path / 'runs'}")
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_configuration_is_refused_and_stays_as_it_was(
    refusal: Glci, faces_shards: str, finished_run: Path
) -> None:
    before = _state(finished_run)
    overrides = (f"data.shards={faces_shards}", f"runs={finished_run.parent}", "seed=7", "phases.completion.steps=3")
    line = refusal("train", *_TINY, *overrides)
    assert f"{finished_run} belongs to another configuration" in line
    assert "seed: 0 / 7" in line
    assert "phases.completion.steps: 2 / 3" in line
    assert _state(finished_run) == before


def test_a_folder_that_is_no_run_is_refused_and_stays_as_it_was(
    refusal: Glci, faces_shards: str, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    before = _state(tmp_path)
    assert "is no run's folder" in refusal("train", *_TINY, f"data.shards={faces_shards}", f"runs={tmp_path}")
    assert _state(tmp_path) == before


def test_a_name_that_holds_a_line_break_is_told_in_one_line(refusal: Glci, tmp_path: Path) -> None:
    line = refusal("status", f"{tmp_path}/a\nglci: error: \x1b[2Jb")
    assert r"/a\nglci: error: \x1b[2Jb is no folder" in line


def test_runs_that_cannot_be_written_are_one_line(refusal: Glci, faces_shards: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refusal("train", *_TINY, f"data.shards={faces_shards}", f"runs={tmp_path / 'file'}")
    assert "cannot be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_evaluating_what_is_no_run_is_one_line(refusal: Glci, faces_shards: str, tmp_path: Path) -> None:
    assert "nothing" in refusal("evaluate", tmp_path / "nothing", "--data", faces_shards)
    (tmp_path / "file").write_text("")
    assert "file" in refusal("evaluate", tmp_path / "file", "--data", faces_shards)
    (tmp_path / "empty").mkdir()
    before = _state(tmp_path)
    assert "name the folder of a run" in refusal("evaluate", tmp_path / "empty", "--data", faces_shards)
    (tmp_path / "empty" / "config.yaml").write_text("name: [")
    assert "is no configuration" in refusal("evaluate", tmp_path / "empty", "--data", faces_shards)
    assert before.keys() == _state(tmp_path).keys() - {str(tmp_path / "empty" / "config.yaml")}


def test_evaluating_a_run_without_a_checkpoint_is_one_line(
    refusal: Glci, faces_shards: str, finished_run: Path, tmp_path: Path
) -> None:
    young = Path(shutil.copytree(finished_run, tmp_path / "young"))
    shutil.rmtree(young / "checkpoints")
    before = _state(young)
    assert "has no checkpoint yet" in refusal("evaluate", young, "--data", faces_shards)
    assert _state(young) == before


def test_evaluating_on_no_shards_or_no_photos_is_one_line(refusal: Glci, faces_shards: str, finished_run: Path) -> None:
    before = _state(finished_run)
    assert "/nowhere is no folder" in refusal("evaluate", finished_run, "--data", "/nowhere")
    assert "--photos=0" in refusal("evaluate", finished_run, "--data", faces_shards, "--photos", "0")
    assert "--batch=0" in refusal("evaluate", finished_run, "--data", faces_shards, "--batch", "0")
    assert "--resamples=-1" in refusal("evaluate", finished_run, "--data", faces_shards, "--resamples", "-1")
    assert _state(finished_run) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}@7"], "has no checkpoint of step 7: glci checkpoints list"),
        (["{run}@last"], "behind @ stands the step of a checkpoint"),
        (["{run}", "{run}@2"], "(step 2) is named twice"),
        (["{run}", "--out", "{run}/config.yaml"], "config.yaml cannot be written"),
        (["{run}", "--masks", "boxes"], "--masks=boxes is no mask set: choose among box, centre, freeform-thin"),
        (["{run}", "--protocol", "lama"], "--protocol=lama is not known: choose among mmagic-box, mmagic-irregular"),
        (["{run}", "--masks", "box", "--protocol", "centre"], "--masks=box and --protocol=centre both name the holes"),
        (["{run}", "--fid-weights", "/nowhere.pth"], "--fid-weights=/nowhere.pth cannot be read"),
        (["{run}", "--lpips-weights", "/dev/null"], "--lpips-weights=/dev/null is no file of weights"),
    ],
)
def test_asking_an_evaluation_for_what_is_not_there_is_one_line(
    refusal: Glci, faces_shards: str, finished_run: Path, words: list[str], said: str
) -> None:
    before = _state(finished_run)
    named = [word.format(run=finished_run) for word in words]
    assert said in refusal("evaluate", *named, "--data", faces_shards)
    assert _state(finished_run) == before


def test_an_evaluation_of_two_steps_of_a_run_tells_both_and_their_ratio(
    faces_shards: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(finished_run, tmp_path / "other"))
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("name: run", "name: other"))
    words = ["--data", faces_shards, "--masks", "freeform-thin", "--resamples", "5", "--out", str(tmp_path / "out")]
    # The second takes the first one's place.
    assert [main(["evaluate", f"{finished_run}@2", str(other), *words]) for _ in range(2)] == [0, 0]
    told = capsys.readouterr().out
    assert "other (step 2) over run (step 2)" in told
    assert "mask set freeform-thin" in told
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(document["methods"]) == ["mean colour", "OpenCV Telea", "run (step 2)", "other (step 2)"]
    assert document["methods"]["run (step 2)"] == document["methods"]["other (step 2)"]
    assert document["methods"]["run (step 2)"].keys() >= {"frechet", "frechet_hole", "perceptual", "perceptual_hole"}


def test_an_evaluation_by_a_published_protocol_says_so(
    faces_shards: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", faces_shards, "--photos", "4", "--resamples", "0", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(finished_run), "--protocol", "lama-medium", *words]) == 0
    told = capsys.readouterr().out
    assert "; protocol lama-medium, seed 20170730, digest " in told
    assert "; published for 256 and 512 px; here 64\n" in told
    assert "U-IDS and P-IDS (EfficientNet-Lite0) are left out" in told
    assert "they need more than 1280 photos" in told
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document["protocol"] == {"name": "lama-medium", "seed": 20170730, "size": 64, "published_px": [256, 512]}


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.md", "evaluation.png"])
def test_an_evaluation_takes_no_other_files_place(
    refusal: Glci, faces_shards: str, finished_run: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('{"years": "of work"}')
    before = _state(tmp_path)
    said = refusal("evaluate", finished_run, "--data", faces_shards, "--photos", 4, "--out", tmp_path)
    assert f"{tmp_path / name} is there and is no evaluation of glci; give another --out, or move it away" in said
    assert _state(tmp_path) == before


def test_the_printed_configuration_needs_no_shards_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "data.shards=/nowhere", "recipe=paper"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "shards: /nowhere" in stdout
    assert stderr == ""


@pytest.mark.parametrize("arguments", [[], ["trian"], ["evaluate", "runs/x"], ["config", "--nope"]])
def test_a_command_that_does_not_exist_ends_with_2_and_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("usage: glci")


@pytest.mark.distributed
def test_a_real_process_says_one_line_too(faces_shards: str, tmp_path: Path) -> None:
    mistakes = {
        "global_bach is no configuration key": [f"data.shards={faces_shards}", "global_bach=4"],
        "engine.precision=fp16 needs a GPU": [f"data.shards={faces_shards}", "engine.precision=fp16"],
    }
    processes = {
        said: _start("train", *_TINY, f"runs={tmp_path / 'runs'}", *overrides) for said, overrides in mistakes.items()
    }
    for said, process in processes.items():
        code, stdout, stderr = _end(process)
        assert (code, stdout) == (2, "")
        assert _is_one_line(stderr), stderr
        assert said in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("global_batch=33", "data.order.lanes=1"), "global_batch=33 is not a multiple of 2 (2 ranks x"),
        (("data.shards=/nowhere",), "no shards: /nowhere"),
    ],
    ids=["a batch that the ranks do not divide", "no shards"],
)
def test_a_world_of_two_says_one_line_once_and_both_ranks_end_with_2(
    faces_shards: str, tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    command = ("train", *_TINY, f"data.shards={faces_shards}", f"runs={tmp_path / 'runs'}", *overrides)
    port = free_port()
    ranks = [_start(*command, **launcher_environment(rank, 2, port)) for rank in range(2)]
    (code_0, stdout_0, stderr_0), (code_1, stdout_1, stderr_1) = [_end(process) for process in ranks]
    assert (code_0, code_1) == (2, 2)
    assert _is_one_line(stderr_0), stderr_0
    assert said in stderr_0
    assert (stdout_0, stdout_1, stderr_1) == ("", "", "")
    assert list(tmp_path.iterdir()) == []


def test_submitting_and_looking_load_no_torch(finished_run: Path) -> None:
    # It would be most of the time that they take.
    code = (
        "import sys; from glci_dist import cli; from glci_dist.slurm import commands, preflight, submit;"
        f"assert cli.main(['status', {str(finished_run)!r}]) == 0;"
        "print(sorted({'torch', 'deepspeed', 'tensorboard', 'submitit'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
