"""The wheel is whole: it works outside the checkout, with its own configuration files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.extending.test_extending import MINE, PARTS
from tests.small_run import events, small

_CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "--wheel-dir", folder, _CHECKOUT], capture_output=True, text=True, timeout=100)
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _python(installed: Path, cwd: Path, *arguments: str) -> str:
    """What Python prints in ``cwd`` when it finds the installed package and no checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_wheel_holds_the_package_its_configuration_and_licence_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (_CHECKOUT / "configs").rglob("*.yaml"):
        assert f"glci_dist/configs/{path.relative_to(_CHECKOUT / 'configs')}" in names
    for path in (_CHECKOUT / "glci_dist").rglob("*.py"):
        assert str(path.relative_to(_CHECKOUT)) in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"glci_dist"}


def test_the_wheel_installs_the_command_glci(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [entry_points] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "glci = glci_dist.__main__:entry" in archive.read(entry_points).decode()


def test_an_installed_wheel_takes_its_configuration_from_itself(installed: Path, tmp_path: Path) -> None:
    code = "import glci_dist.compose as c; print(c.__file__); print(c.config_folder())"
    module, configs = _python(installed, tmp_path, "-c", code).splitlines()
    assert Path(module) == installed / "glci_dist" / "compose.py"
    assert Path(configs) == installed / "glci_dist" / "configs"


def test_an_installed_wheel_composes_what_the_checkout_composes(installed: Path, tmp_path: Path) -> None:
    overrides = ("recipe=paper", "experiment=faces160", "data.shards=x")
    printed = _python(installed, tmp_path, "-m", "glci_dist", "config", *overrides)
    assert printed == _python(_CHECKOUT, tmp_path, "-m", "glci_dist", "config", *overrides)
    assert "name: faces160" in printed
    assert list(tmp_path.iterdir()) == []


def test_an_installed_wheel_trains_with_parts_of_the_users_own(
    installed: Path, faces_shards: str, tmp_path: Path
) -> None:
    words = small(faces_shards, tmp_path, steps=(1, 1, 2), extra=(*PARTS, "engine.precision=bf16"))
    done = subprocess.run(
        [sys.executable, "-m", "glci_dist", "train", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(MINE)]), "PYTHONSAFEPATH": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "completion: 7 of torch's batch norms were converted" in done.stdout
    assert [event["step"] for event in events(tmp_path, "end")] == [4]
    last = json.loads((tmp_path / "run" / "scalars.jsonl").read_text().splitlines()[-1])
    assert {"loss/edges", "loss/r2", "contest/sharpness"} <= last.keys()
