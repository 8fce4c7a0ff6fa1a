"""The nodes of a job meet at a port that is free, whatever else listens on the first one."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousTimeoutError

from glci_dist.slurm.notes import Notes
from glci_dist.slurm.rendezvous import meet


def at(folder: Path, port: int, said: list[str], *, is_host: bool, timeout_s: int = 30) -> RendezvousHandler:
    notes = Notes(folder, "7", 0, "n1" if is_host else "n2")
    return meet(
        notes=notes,
        host="127.0.0.1",
        is_host=is_host,
        nodes=2,
        run_id="7.0",
        first_port=port,
        number=0,
        timeout_s=timeout_s,
        keep_alive_s=5,
        tell=said.append,
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_that_is_taken_costs_no_time_and_the_others_learn_which_one_it_is(tmp_path: Path, address: str) -> None:
    (tmp_path / "jobs").mkdir()
    said: list[str] = []
    met: list[RendezvousHandler] = []
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        # It is there before the first node.
        second = threading.Thread(target=lambda: met.append(at(tmp_path, port, said, is_host=False)))
        second.start()
        start = time.monotonic()
        met.append(at(tmp_path, port, said, is_host=True))
        assert time.monotonic() - start < 20
        second.join()
    assert len(met) == 2
    assert Notes(tmp_path, "7", 0, "n2").meeting() not in (None, port)
    (line,) = said
    assert f"port {port} is taken on this node" in line


@pytest.mark.timeout(60)
def test_a_host_that_never_comes_is_waited_for_so_long_and_named(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    # What an earlier start left is not this one's.
    Notes(tmp_path, "7", 1, "n1").meet(host="n1", port=1)
    with pytest.raises(RendezvousTimeoutError, match=r"127\.0\.0\.1 did not say within 1 s at which port to meet"):
        at(tmp_path, 30000, [], is_host=False, timeout_s=1)
