"""A run on shards behind a password: no output and no file of it holds that, however it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glci_dist.cluster.elastic import write_error_file
from glci_dist.runs import attempts
from glci_dist.runs.endings import Endings
from glci_dist.runs.events import ConfigurationChanged, DisplayFailed, Failed
from tests.data.fault_server import FaultServer
from tests.data.shards_help import broken_avif, glci, jpeg, write_tar
from tests.small_run import small


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_a_run_on_shards_behind_a_password_tells_it_to_nobody(tmp_path: Path) -> None:
    shards = tmp_path / "theirs"
    shards.mkdir()
    write_tar(shards / "x.tar", {**{f"{n:02d}.jpg": jpeg(n) for n in range(15)}, "avif.jpg": broken_avif()})
    assert glci("shards", "index", shards, "--processes", 1) == 0
    extra = (f"data.cache.dir={tmp_path / 'cache'}", "data.workers=1", "data.tolerance=0.5", "data.cache.backoff_s=0")
    with FaultServer(shards) as server:
        server.password = "me:hunter2"
        url = server.url.replace("://", "://me:hunter2@") + "?sig=hunter2&v=1"
        command = [sys.executable, "-m", "glci_dist", "train", *small(url, tmp_path, steps=(4, 0, 0), extra=extra)]
        server.faults["x.tar"].extend([("status", 503), ("status", 404)])
        ended = [subprocess.run(command, capture_output=True, text=True, check=False, timeout=120) for _ in range(2)]
    said = "".join(each.stdout + each.stderr for each in ended)
    assert [each.returncode for each in ended] == [2, 0], said
    # What was looked for is there, without the credentials.
    assert "retry 1" in said
    assert "x.tar?sig=***&v=1 cannot be read: no such file" in said
    assert "look: glci shards verify http://***@127.0.0.1" in said
    assert "hunter2" not in said
    assert left_in(tmp_path / "run") == []
    assert left_in(tmp_path / "cache") == []


def test_a_traceback_shows_no_credentials_and_neither_does_what_is_left_of_it(tmp_path: Path) -> None:
    code = (
        "import threading, glci_dist.cli\n"
        "def fail(): raise RuntimeError('no answer of http://me:hunter2@host/x')\n"
        "def main():\n"
        "    thread = threading.Thread(target=fail)\n"
        "    thread.start(); thread.join()\n"
        "    fail()\n"
        "glci_dist.cli.main = main\n"
        "from glci_dist.__main__ import entry\n"
        "entry()\n"
    )
    left = tmp_path / "error.json"
    environment = {"TORCHELASTIC_ERROR_FILE": str(left), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("RuntimeError: no answer of http://***@host/x") == 2
    assert "hunter2" not in done.stderr
    assert "RuntimeError: no answer of http://***@host/x" in left.read_text()
    assert left_in(tmp_path) == []


def test_what_a_run_writes_down_of_its_end_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    write_error_file("http://me:hunter2@host/x is gone")
    endings = Endings(attempts.begin(tmp_path / "run", ranks=1), rank=0, host="here")
    assert endings.journal is not None
    endings.journal.write(DisplayFailed(1, observer="TensorBoard", error="http://me:hunter2@host/x"))
    endings.journal.write(ConfigurationChanged(1, keys=("https://h?sig=hunter2",)))
    endings.end(Failed(1, "http://me:hunter2@host/x is gone"))
    assert "http://***@host/x is gone" in (tmp_path / "run" / "journal.jsonl").read_text()
    assert left_in(tmp_path) == []


def test_words_that_no_command_has_are_shown_without_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        glci("shards", "show", "x", "--from", "http://me:hunter2@host/x")
    printed = capsys.readouterr().err
    assert "http://***@host/x" in printed
    assert "hunter2" not in printed
