"""The code that a job runs: a copy in the run's folder, so that what is edited later changes no queued job."""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from glci_dist import components, compose
from glci_dist.config import Config
from glci_dist.credentials import holds_url_credentials
from glci_dist.errors import UserError

_YAML = "searchpath"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def check() -> None:
    """Raise ``UserError`` where the copy would hold credentials of a url in ``configs/``."""
    for path in sorted(compose.config_folder().rglob("*.yaml")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.lstrip().startswith("#") and holds_url_credentials(line):
                raise UserError(
                    f"{path}, line {number}: a job's copy of it would hold the credentials of this url: keep user and "
                    "password in ~/.netrc, or export the url as a variable and write ${oc.env:THE_VARIABLE}"
                )


def take(run: Path, config: Config, search_path: Sequence[Path] = ()) -> Path:
    """Copy package, ``configs/`` and the user's modules that ``config`` names into the run's folder.

    ``search_path``: folders with YAML of the user's, which ``at_copies`` finds again. Returns the folder that goes onto
    ``PYTHONPATH``, named by its content: submitting again without a change makes no second copy.
    """
    package = Path(__file__).resolve().parent.parent
    (run / "code").mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".code-", dir=run / "code"))
    try:
        shutil.copytree(package, aside / package.name, ignore=_LEFT_OUT)
        if not (aside / package.name / "configs").exists():
            shutil.copytree(compose.config_folder(), aside / "configs")
        for module in components.modules(config):
            if module.is_dir():
                shutil.copytree(module, aside / module.name, ignore=_LEFT_OUT)
            else:
                shutil.copy(module, aside / module.name)
        for number, configs in enumerate(search_path):
            shutil.copytree(configs, aside / _YAML / str(number), ignore=_all_but_yaml)
        aside.chmod(0o755)
        final = run / "code" / _digest(aside)
        if not final.exists():
            # Once, and not by every rank at its first start.
            compileall.compile_dir(aside, quiet=2)
            os.rename(aside, final)
        return final
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def at_copies(word: str, code: Path) -> str:
    """An override as the job gets it: a search path is that of the copies in ``code``."""
    folders = [
        f"file://{os.path.abspath(code / _YAML / str(number))}" for number in range(len(compose.search_path(word)))
    ]
    return f"{compose.SEARCH_PATH}=[{','.join(folders)}]" if folders else word


def _all_but_yaml(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not (name.endswith(".yaml") or (Path(folder) / name).is_dir())}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
