"""The nodes of a job meet at a port that is free, whatever else listens on the first one."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousTimeoutError

from glci_dist.config import ClusterConfig
from glci_dist.slurm.notes import Notes
from glci_dist.slurm.rendezvous import meet
from glci_dist.slurm.requeue import JobStart


def at(folder: Path, port: int, *, is_host: bool, timeout_s: int = 30) -> RendezvousHandler:
    cluster = ClusterConfig(executor="local", reserved_port=port, node_timeout_s=timeout_s)
    start = JobStart(folder, "0", 0, "n1" if is_host else "n2", cluster)
    return meet(start, host="127.0.0.1", is_host=is_host, nodes=2)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_that_is_taken_costs_no_time_and_the_others_learn_which_one_it_is(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").mkdir()
    met: list[RendezvousHandler] = []
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        # It is there before the first node.
        second = threading.Thread(target=lambda: met.append(at(tmp_path, port, is_host=False)))
        second.start()
        start = time.monotonic()
        met.append(at(tmp_path, port, is_host=True))
        assert time.monotonic() - start < 20
        second.join()
    assert len(met) == 2
    assert Notes(tmp_path, "0", 0, "n2").meeting() not in (None, port)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"port {port} is taken on this node" in line


@pytest.mark.timeout(60)
def test_a_host_that_never_comes_is_waited_for_so_long_and_named(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    # What an earlier start left is not this one's.
    Notes(tmp_path, "0", 1, "n1").meet(host="n1", port=1)
    with pytest.raises(RendezvousTimeoutError, match=r"127\.0\.0\.1 did not say within 1 s at which port to meet"):
        at(tmp_path, 30000, is_host=False, timeout_s=1)
