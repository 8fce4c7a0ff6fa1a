"""When crashed workers are started again, and when not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from glci_dist.cluster.elastic import FailureRole, write_error_file
from glci_dist.config import ClusterConfig
from glci_dist.slurm.agent import Crash, bad_node, order_of_cause, verdict, without_own_kills

CLUSTER = ClusterConfig(restarts=4, restart_window_s=100, same_step=3, node_crashes=3)


def crashes(*at: tuple[float, int]) -> list[Crash]:
    return [Crash(time, step, "it broke", ("n1",)) for time, step in at]


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ([(0, 7)], None),
        ([(0, 7), (9, 7)], None),
        ([(0, 7), (9, 7), (18, 7)], "it crashed 3 times in a row in step 7"),
        ([(0, 7), (9, 8), (18, 7), (27, 7)], None),
        # In the same step, however long it took to come there.
        ([(0, 7), (9000, 7), (18000, 7)], "it crashed 3 times in a row in step 7"),
        ([(0, -1), (9, -1), (18, -1)], "it crashed 3 times in a row before its first step"),
        ([(0, 1), (9, 2), (18, 3), (27, 4)], None),
        ([(0, 1), (9, 2), (18, 3), (27, 4), (36, 5)], "it crashed 5 times within 100 s (cluster.restarts=4)"),
        ([(0, 1), (50, 2), (100, 3), (150, 4), (200, 5)], None),
    ],
)
def test_workers_are_started_again_unless_it_is_in_vain(at: list[tuple[float, int]], why: str | None) -> None:
    assert verdict(crashes(*at), CLUSTER) == why


@pytest.mark.parametrize(
    ("steps", "origins", "blamed"),
    [
        ((7, 9), ("n2", "n2"), None),
        ((7, 9, 12), ("n2", "n2", "n2"), "n2"),
        ((3, 7, 9, 12), ("n1", "n2", "n2", "n2"), "n2"),
        ((7, 9, 12), ("n2", "n1", "n2"), None),
        # A crash that began on two nodes says nothing of either, and one that began on none says nothing at all.
        ((7, 9, 12), ("n2", "n1 n2", "n2"), None),
        ((7, 9, 12), ("", "", ""), None),
        # The step is to blame, not the node that its sample goes to.
        ((7, 7, 7), ("n2", "n2", "n2"), None),
        # Before the first step no sample can be.
        ((-1, -1, -1), ("n2", "n2", "n2"), "n2"),
        ((-1, -1, -1), ("n1 n2", "n1 n2", "n1 n2"), None),
    ],
)
def test_a_node_is_blamed_for_crashes_that_all_began_there_and_not_in_one_step(
    steps: tuple[int, ...], origins: tuple[str, ...], blamed: str | None
) -> None:
    found = [
        Crash(10.0 * number, step, "it broke", tuple(origin.split()))
        for number, (step, origin) in enumerate(zip(steps, origins, strict=True))
    ]
    assert bad_node(found, CLUSTER) == blamed
    # Far apart, they are nothing that a node has.
    assert bad_node([replace(crash, time=20 * crash.time) for crash in found], CLUSTER) is None


def failure(folder: Path, code: int, part: FailureRole | None = None) -> ProcessFailure:
    """What torch's agent makes of a worker that ended with ``code``."""
    file = folder / "error.json"
    file.unlink(missing_ok=True)
    if part is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
            write_error_file("it broke", part)
    return ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file=str(file))


def test_a_crash_is_put_down_to_who_broke_and_not_to_who_waited(tmp_path: Path) -> None:
    broke = order_of_cause(failure(tmp_path, 1, FailureRole.BROKE))
    killed = order_of_cause(failure(tmp_path, -9))
    waited = order_of_cause(failure(tmp_path, 1, FailureRole.WAITED))
    lost = order_of_cause(failure(tmp_path, 1, FailureRole.LOST))
    aborted = order_of_cause(failure(tmp_path, -6))
    ended = order_of_cause(failure(tmp_path, -15))
    assert [place for place, _ in (broke, killed, waited, lost, aborted, ended)] == [0, 1, 2, 3, 3, 4]


def test_a_kill_by_the_agent_itself_is_no_cause() -> None:
    killed, waited = ProcessFailure(0, 10, -9, ""), ProcessFailure(1, 11, 1, "")
    assert without_own_kills({0: killed, 1: waited}, {11}) == {1: waited}
    # By somebody else, and so before the others failed for it.
    assert without_own_kills({0: killed, 1: waited}, {10}) == {0: killed, 1: waited}
    # One that says why it broke may take longer to end than those that it leaves alone.
    assert without_own_kills({0: killed, 1: waited}, {10, 12}) == {0: killed, 1: waited}
    assert without_own_kills({0: killed, 1: waited}, set()) == {0: killed, 1: waited}
    assert without_own_kills({0: killed}, {12}) == {0: killed}
