"""Which world a process is part of, by the variables of every launcher that there is."""

from __future__ import annotations

import os

import pytest

from glci_dist.cluster.launchers import LaunchedRank, detect, first_host, is_silent, set_torch_variables
from glci_dist.errors import UserError

OMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
OMPI_ON_ONE_HOST = {**OMPI, "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "1",
    "MV2_COMM_WORLD_SIZE": "4",
    "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "4",
}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "n[01-02]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = {
    **BATCH_SCRIPT,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
ELASTIC = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "2",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n07",
    "MASTER_PORT": "29401",
}
NAMED = {"MASTER_ADDR": "n09", "MASTER_PORT": "23456"}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without a launcher, that a test may fill."""
    prefixes = ("SLURM_", "OMPI_", "PMI", "MV2_", "MPI_", "TORCHELASTIC_", "MASTER_", "LOCAL_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(prefixes)}
    kept.pop("RANK", None)
    kept.pop("WORLD_SIZE", None)
    monkeypatch.setattr(os, "environ", kept)
    return kept


def _place(found: LaunchedRank | None) -> tuple[int, int, int, int | None, str] | None:
    return None if found is None else (found.rank, found.size, found.local_rank, found.local_size, found.address)


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({}, None),
        (OMPI_ON_ONE_HOST, (1, 4, 1, 4, "127.0.0.1")),
        (MPICH, (1, 4, 1, 4, "127.0.0.1")),
        (MVAPICH, (1, 4, 1, 4, "127.0.0.1")),
        ({**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", **NAMED}, (1, 4, 0, 2, "n09")),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None),
        (STEP, (3, 4, 0, 1, "n01")),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, (3, 4, 0, 2, "n01")),
        ({**STEP, "SLURM_STEP_NUM_NODES": "1"}, (3, 4, 0, 4, "127.0.0.1")),
        ({**STEP, "MASTER_ADDR": "n02"}, (3, 4, 0, 1, "n02")),
        ({**STEP, "WORLD_SIZE": "4"}, (3, 4, 0, 1, "n01")),
        # srun may speak PMI to its tasks, and knows the hosts.
        ({**STEP, "PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4, 0, 1, "n01")),
        ({**STEP, "PMIX_RANK": "3"}, (3, 4, 0, 1, "n01")),
        # A batch script, salloc's shell and a step of one task are one process each.
        (BATCH_SCRIPT, None),
        ({**BATCH_SCRIPT, "SLURM_STEP_ID": "4294967290"}, None),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        # mpirun starts its helpers by srun, one a node.
        ({**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", **OMPI_ON_ONE_HOST}, (1, 4, 1, 4, "127.0.0.1")),
        # So does the agent of `glci submit`, whose variables come first.
        ({**STEP, "SLURM_PROCID": "1", **ELASTIC}, (2, 8, 0, 2, "n07")),
        ({**OMPI_ON_ONE_HOST, **ELASTIC}, (2, 8, 0, 2, "n07")),
        # DeepSpeed's launcher.
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", **NAMED},
            (1, 2, 1, 2, "n09"),
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", **NAMED}, (1, 2, 0, None, "n09")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0, None, "")),
        # As a shell or a container leaves what it has no value for.
        ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "", "MASTER_ADDR": "", "MASTER_PORT": "", "PMI_RANK": ""}, None),
        ({**STEP, "RANK": "", "WORLD_SIZE": "", "MASTER_ADDR": "", "LOCAL_RANK": ""}, (3, 4, 0, 1, "n01")),
    ],
)
def test_a_process_knows_its_place(
    variables: dict[str, str], told: dict[str, str], place: tuple[int, int, int, int | None, str] | None
) -> None:
    variables |= told
    assert _place(detect()) == place
    assert _place(set_torch_variables()) == place
    # Others' int(os.environ["RANK"]) would fail on an empty one.
    assert "" not in (variables.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))
    if place is not None and place[1] > 1:
        # From here on torch's variables say it, to torch and to DeepSpeed, and say the same.
        assert (variables["RANK"], variables["WORLD_SIZE"]) == (str(place[0]), str(place[1]))
        assert (variables["LOCAL_RANK"], variables["MASTER_ADDR"]) == (str(place[2]), place[4])
        assert 1024 <= int(variables["MASTER_PORT"]) < 65536
        assert _place(detect()) == place


@pytest.mark.parametrize(
    ("told", "is_there"),
    [
        (STEP, True),
        (OMPI_ON_ONE_HOST, True),
        (ELASTIC, True),
        ({"RANK": "1", "WORLD_SIZE": "2", "CROSS_RANK": "0", **NAMED}, True),
        # A machine of a cluster that sets them for all that runs on it.
        ({"RANK": "1", "WORLD_SIZE": "2", **NAMED}, False),
        ({"RANK": "1"}, False),
        # Nobody may be silent on what contradicts itself, or is not whole.
        ({"SLURM_PROCID": "1", "RANK": "0"}, False),
        ({**STEP, "RANK": "0", "WORLD_SIZE": "4", **NAMED}, False),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"PMI_RANK": "1", "PMI_SIZE": "x"}, False),
        ({}, False),
    ],
)
def test_only_a_launcher_says_that_others_run_the_same_words(
    variables: dict[str, str], told: dict[str, str], is_there: bool
) -> None:
    variables |= told
    assert is_silent() == is_there


def test_all_ranks_of_a_step_meet_at_one_port_and_those_of_another_one_elsewhere(variables: dict[str, str]) -> None:
    ports = []
    for job, rank in (("7", "0"), ("7", "3"), ("8", "3")):
        variables |= {**STEP, "SLURM_JOB_ID": job, "SLURM_PROCID": rank}
        found = detect()
        assert found is not None
        ports.append(found.port)
    assert ports[0] == ports[1] != ports[2]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"RANK": "0"}, "RANK=0 is set, but WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, but RANK is not"),
        ({"RANK": "2", "WORLD_SIZE": "2", **NAMED}, "RANK=2 is no rank of WORLD_SIZE=2, which are 0 to 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2", **NAMED}, "RANK=-1 is no rank"),
        ({"RANK": "0", "WORLD_SIZE": "0", **NAMED}, "WORLD_SIZE=0 is no number of ranks"),
        ({"RANK": "one", "WORLD_SIZE": "2", **NAMED}, "RANK=one is no whole number"),
        ({"RANK": "", "WORLD_SIZE": "2", **NAMED}, "WORLD_SIZE=2 is set, but RANK is not"),
        ({"RANK": "0", "WORLD_SIZE": "2", **NAMED, "MASTER_PORT": "http"}, "MASTER_PORT=http is no whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2", **NAMED, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({"RANK": "0", "WORLD_SIZE": "2", **NAMED, "MASTER_PORT": "0"}, "MASTER_PORT is 0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "n09"}, "MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x", **NAMED}, "LOCAL_RANK=x is no whole number"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2", **NAMED},
            "LOCAL_RANK=3 is no rank of LOCAL_WORLD_SIZE=2",
        ),
        # Exported for all tasks of a step alike.
        (
            {**STEP, "RANK": "0", "WORLD_SIZE": "4", **NAMED},
            "RANK and WORLD_SIZE say rank 0 of 4, but srun says rank 3",
        ),
        ({**OMPI_ON_ONE_HOST, "WORLD_SIZE": "2"}, "say rank 1 of 2, but mpirun (Open MPI) says rank 1 of 4"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_RANK=1 is set, but OMPI_COMM_WORLD_SIZE is not"),
        ({"OMPI_COMM_WORLD_RANK": "x", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK=x is no whole number"),
        ({"PMI_RANK": "4", "PMI_SIZE": "4"}, "PMI_RANK=4 is no rank"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE is not"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1 is set, but nothing says of how many"),
        (
            {**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            "4 ranks on several hosts, and MASTER_ADDR does not say where rank 0 is",
        ),
        (OMPI, "4 ranks, OMPI_COMM_WORLD_LOCAL_SIZE does not say how many of them on this host, and MASTER_ADDR does"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS=many is no whole number"),
    ],
)
def test_what_makes_no_world_is_refused_in_one_line(variables: dict[str, str], told: dict[str, str], said: str) -> None:
    variables |= told
    before = dict(variables)
    with pytest.raises(UserError) as refused:
        set_torch_variables()
    assert said in str(refused.value)
    assert any(way in str(refused.value) for way in ("torchrun", "choose a free one", "one launcher alone"))
    assert "\n" not in str(refused.value)
    assert variables == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[01-03,7],m4", "n01"),
        ("m4,n[01-03]", "m4"),
        ("rack[2-3]-n[001,005-009].x", "rack2-n001.x"),
        ("a-b[10]", "a-b10"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list_is_that_which_slurm_means(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
