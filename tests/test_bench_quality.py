"""The comparison of whole runs: how variants are read, which code they run, and which runs are reused."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.bench_quality import Measured, Variant, snapshot, table, train, variant
from glci_dist.errors import UserError

_ROOT = Path(__file__).resolve().parent.parent


def test_a_variant_is_a_name_perhaps_a_commit_and_overrides() -> None:
    assert variant("new") == Variant("new", "", ())
    assert variant("old@f959ab6") == Variant("old", "f959ab6", ())
    assert variant("paper=recipe=paper phases.joint.steps=3").overrides == ("recipe=paper", "phases.joint.steps=3")
    assert variant("short@a/b='+phases={a: {steps: 1}}'") == Variant("short", "a/b", ("+phases={a: {steps: 1}}",))
    with pytest.raises(argparse.ArgumentTypeError, match=r"'a b=c' is no NAME\[@COMMIT\]"):
        variant("a b=c")
    with pytest.raises(argparse.ArgumentTypeError, match="this program sets seed itself"):
        variant("new=seed=3")


def test_a_commit_has_its_own_code_under_its_hash_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    code = snapshot("HEAD", tmp_path)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, check=True, text=True).stdout
    shown = subprocess.run(["git", "show", "HEAD:configs/config.yaml"], cwd=_ROOT, capture_output=True, check=True)
    assert code.name == head.strip()
    assert (code / "configs" / "config.yaml").read_bytes() == shown.stdout
    assert (code / "glci_dist" / "__main__.py").is_file()
    with pytest.raises(UserError, match="commit 0000000: fatal"):
        snapshot("0000000", tmp_path)


def test_the_working_tree_is_copied_once_as_long_as_it_stays_the_same(tmp_path: Path) -> None:
    code = snapshot("", tmp_path)
    assert (code / "configs" / "config.yaml").read_bytes() == (_ROOT / "configs" / "config.yaml").read_bytes()
    assert snapshot("", tmp_path) == code
    assert [each.name for each in tmp_path.iterdir()] == [code.name]


def test_only_a_complete_run_of_the_same_command_and_code_is_reused(tmp_path: Path) -> None:
    def seconds(code: str = "a1", precision: str = "fp32") -> float:
        arguments = argparse.Namespace(experiment="demo", data=tmp_path, precision=precision, workers=2)
        return train(variant("new"), tmp_path / code, 0, tmp_path, arguments)

    run = tmp_path / "new"
    run.mkdir()
    with pytest.raises(UserError, match="was interrupted or failed, so its time is not known: remove it"):
        seconds()
    data = [f"data.shards={tmp_path / 'train'}", f"data.val={tmp_path / 'val'}"]
    overrides = ["experiment=demo", *data, f"runs={tmp_path}", "name=new", "seed=0", "engine.precision=fp32"]
    stored = {"overrides": overrides, "workers": 2, "code": "a1", "seconds": 12.5}
    (run / "bench-quality.json").write_text(json.dumps(stored))
    assert seconds() == 12.5
    with pytest.raises(UserError, match="has other code: a1 / b2: choose another --runs"):
        seconds(code="b2")
    with pytest.raises(UserError, match="has other overrides"):
        seconds(precision="bf16")


def test_time_ratios_are_relative_to_the_first_variant_of_the_same_seed() -> None:
    metric: dict[str, float | None] = {"value": 0.5, "low": None, "high": None}
    names = ("hole_l1_x100", "psnr_db", "ssim", "seam", "perceptual", "frechet")
    metrics = dict.fromkeys(names, metric) | {"frechet": {"value": 16.512, "low": 14.7, "high": 18.8}}

    def measured(old: float, new: float) -> dict[str, Measured]:
        return {"old": Measured(old, metrics, []), "new": Measured(new, metrics, ["step 9: collapse"])}

    lines = table({0: measured(100, 40), 1: measured(200, 20), 2: measured(10, 5)}).splitlines()
    assert "| 1 | new | 20 | 0.10 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 16.51 (14.7 to 18.8) | step 9: collapse |" in lines
    assert lines[-1] == "time ratio, median of 3 seeds: old 1.00, new 0.40"
