"""What every test may ask for."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from glci_dist.data.build import build_shards
from glci_dist.data.demo_faces import write_corpus
from glci_dist.data.plan import BuildOptions
from tests.worlds import start_server

_SHARED = Path(__file__).resolve().parents[2] / "shared"

for number in (signal.SIGINT, signal.SIGQUIT):
    # As a script's background leaves them (`make test &`), and what tests start would rightly ignore them too.
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _server_of_worlds(request: pytest.FixtureRequest) -> None:
    """Where any test starts a world."""
    if any(item.get_closest_marker("distributed") for item in request.session.items):
        start_server()


@pytest.fixture(scope="session")
def faces_zip() -> Path:
    """The real faces corpus; its terms forbid copying it into the project."""
    path = _SHARED / "faces" / "aaf-192.zip"
    if not path.exists():
        pytest.skip(f"needs the faces corpus at {path}")
    return path


@pytest.fixture(scope="session")
def faces_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 rendered faces of 64 px in shards of 16."""
    folder = tmp_path_factory.mktemp("faces")
    write_corpus(folder / "photos", photos=96, seed=1, size=64, processes=1)
    build_shards(folder / "photos", folder / "shards", BuildOptions(samples=16), processes=1)
    return str(folder / "shards")
