"""Private parts of libraries that this package needs: each is where it was, and is known in one module.

They are read, not imported. Where one has moved in a new version, the test says which, and what breaks without it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import glci_dist

PACKAGE = Path(glci_dist.__file__).parent


@dataclass(frozen=True)
class PrivatePart:
    """A name in a library's file: of a class, a method or attribute; without one, of the module."""

    file: str
    owner: str
    name: str
    needed_for: str
    takes: tuple[str, ...] | None = None
    """The first parameters of a method, ``self`` aside."""
    is_called: bool = False
    """Whether the class has to call it on ``self``, as it is replaced."""


_ENGINE = functools.partial(PrivatePart, "deepspeed/runtime/engine.py", "DeepSpeedEngine")
_ZERO = functools.partial(PrivatePart, "deepspeed/runtime/zero/stage_1_and_2.py", "DeepSpeedZeroOptimizer")
_LOCAL_AGENT = functools.partial(
    PrivatePart, "torch/distributed/elastic/agent/server/local_elastic_agent.py", "LocalElasticAgent"
)
_AGENT = functools.partial(PrivatePart, "torch/distributed/elastic/agent/server/api.py", "SimpleElasticAgent")
_WORKERS = "torch/distributed/elastic/multiprocessing/api.py"
_FAILURE = functools.partial(
    PrivatePart, "torch/distributed/elastic/multiprocessing/errors/__init__.py", "ProcessFailure"
)
_SLURM = functools.partial(PrivatePart, "submitit/slurm/slurm.py")
_JOB = functools.partial(PrivatePart, "submitit/core/utils.py")
_PARSER = functools.partial(PrivatePart, "hydra/core/override_parser/overrides_parser.py", "OverridesParser")
_OVERRIDE = functools.partial(PrivatePart, "hydra/core/override_parser/types.py")

PARTS = {
    "deepspeed": (
        _ENGINE("allreduce_gradients", "gradient means in a watched collective, none in a world of one", (), True),
        _ENGINE("set_gradient_accumulation_boundary", "the last micro-batch alone averages", ("is_boundary",)),
        _ENGINE("was_step_applied", "whether a ZeRO update was applied", ()),
        _ENGINE("torch_autocast_z0_gradscaler", "the loss scale of fp16, in a checkpoint too"),
        _ZERO("scaled_global_norm", "the gradient's norm and limit in a ZeRO update", (), True),
        _ZERO("refresh_fp32_params", "weights that were loaded, in ZeRO's own copy", ()),
        _ZERO("single_partition_of_fp32_groups", "this rank's part of the optimiser's state"),
        _ZERO("round_robin_bit16_padding", "the order of parameters in it"),
        _ZERO("round_robin_gradients", "the order of parameters in it"),
        PrivatePart("deepspeed/ops/__init__.py", "", "__compatible_ops__", "no op is compiled at the first start"),
        PrivatePart("deepspeed/ops/op_builder/cpu/comm.py", "", "deepspeed_shm_comm", "the same"),
    ),
    "torch": (
        _LOCAL_AGENT("_start_workers", "a signal reaches workers that are just starting", ("worker_group",)),
        _LOCAL_AGENT("_stop_workers", "signals after the workers' end", ("worker_group",)),
        _LOCAL_AGENT("_monitor_workers", "what a crash means for the job", ("worker_group",)),
        _LOCAL_AGENT("_pcontext", "the workers' pids and error files"),
        _AGENT("_rendezvous", "no start after a signal", ("worker_group",)),
        _AGENT("_remaining_restarts", "an end where no restart helps"),
        _AGENT("_worker_group", "the store in which nodes say where a crash began"),
        _AGENT("_start_workers", "the agent starts workers by it", ("worker_group",)),
        _AGENT("_monitor_workers", "the agent's loop asks it", ("worker_group",), True),
        PrivatePart(_WORKERS, "SubprocessContext", "subprocess_handlers", "which worker failed first"),
        PrivatePart(_WORKERS, "PContext", "error_files", "the step of a worker that was killed"),
        PrivatePart(_WORKERS, "PContext", "pids", "passing signals on", ()),
        PrivatePart(_WORKERS, "", "TORCHELASTIC_SIGNALS_TO_HANDLE", "signals are passed on and kill no worker"),
        _FAILURE("error_file_data", "what a worker said of its part in a crash"),
        _FAILURE("timestamp", "which worker failed first"),
        PrivatePart(
            "torch/distributed/elastic/rendezvous/dynamic_rendezvous.py",
            "",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
            "a store of its own for each start of the workers",
        ),
        PrivatePart(
            "torch/nn/modules/_functions.py",
            "SyncBatchNorm",
            "forward",
            "batch norm over GPUs",
            (
                "input",
                "weight",
                "bias",
                "running_mean",
                "running_var",
                "eps",
                "momentum",
                "process_group",
                "world_size",
            ),
        ),
        PrivatePart("torch/nn/modules/batchnorm.py", "", "_BatchNorm", "every batch norm of a user's network is found"),
        PrivatePart("torch/nn/modules/dropout.py", "", "_DropoutNd", "every dropout of a user's network is found"),
        PrivatePart("torch/nn/modules/module.py", "Module", "_modules", "a batch norm is converted in its place"),
        PrivatePart("torch/nn/modules/module.py", "Module", "_forward_pre_hooks", "torch's spectral norm is found"),
    ),
    "hydra-core": (
        _PARSER("create", "the values of a sweep", ()),
        _PARSER("parse_override", "the values of a sweep", ("s",)),
        _OVERRIDE("Override", "sweep_string_iterator", "the values of a sweep"),
        _OVERRIDE("Override", "is_sweep_override", "which override is a sweep"),
        _OVERRIDE("ValueType", "SIMPLE_CHOICE_SWEEP", "values with commas stay as they were written"),
    ),
    "submitit": (
        _SLURM("SlurmExecutor", "_submitit_command_str", "the batch script's command"),
        _SLURM("SlurmExecutor", "_make_submission_file_text", "the batch script", ("command", "uid")),
        _SLURM("SlurmExecutor", "_num_tasks", "the tasks of a job", ()),
        _SLURM("", "SlurmJob", "following a job that sbatch was given without submitit"),
        _SLURM("SlurmJobEnvironment", "hostnames", "the first node of a job whose launcher was killed"),
        _JOB("DelayedSubmission", "set_timeout", "what a task calls", ("timeout_min", "max_num_timeout")),
        _JOB("DelayedSubmission", "dump", "what a task calls", ("filepath",)),
        _JOB("DelayedSubmission", "load", "what a job was given, after its launcher was killed", ("filepath",)),
        _JOB("DelayedSubmission", "function", "what a job was given, after its launcher was killed"),
        _JOB("JobPaths", "get_first_id_independent_folder", "where the batch script lies", ("folder",)),
        _JOB("JobPaths", "move_temporary_file", "the names of a job's files", ("tmp_path", "name", "keep_as_symlink")),
        _JOB("JobPaths", "submitted_pickle", "what a job was given, after its launcher was killed"),
        _JOB("JobPaths", "result_pickle", "an earlier start's result is not believed"),
        PrivatePart("submitit/local/local.py", "", "submitit.local._local", "whether a job of this machine is alive"),
    ),
}

ROOMS = {
    "deepspeed": "training/engines.py",
    "torch.distributed.elastic.agent.server.local_elastic_agent": "slurm/agent.py",
    "torch.nn.modules._functions": "models/batch_norm.py",
    "torch.nn.modules.batchnorm": "models/contracts.py",
    "torch.nn.modules.dropout": "models/contracts.py",
    "hydra.core.override_parser": "slurm/sweeps.py",
    "submitit.core": "slurm/submitit_parts.py",
    "submitit.slurm": "slurm/submitit_parts.py",
}
"""The one module that knows each."""


@functools.cache
def _tree(file: str) -> ast.Module | None:
    spec = importlib.util.find_spec(file.partition("/")[0])
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent.parent / file
    return ast.parse(path.read_text(encoding="utf-8")) if path.exists() else None


def _missing(part: PrivatePart) -> str | None:
    """What is wrong with a part, if it is not as it was."""
    module = _tree(part.file)
    if module is None:
        return "its file is gone"
    scope = next((n for n in module.body if isinstance(n, ast.ClassDef) and n.name == part.owner), None)
    if part.owner and scope is None:
        return "its class is gone"
    nodes = list(ast.walk(scope or module))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == part.name]
    if part.takes is not None:
        if not functions:
            return "it is no method any more"
        named = [argument.arg for argument in functions[0].args.args if argument.arg not in ("self", "cls")]
        if tuple(named[: len(part.takes)]) != part.takes:
            return f"it takes {named}"
    elif not functions and not any(_makes(node, part.name) for node in nodes):
        return "it is gone"
    if part.is_called and not any(_calls(node, part.name) for node in nodes):
        return "its class does not call it any more"
    return None


def _makes(node: ast.AST, name: str) -> bool:
    """Whether a statement gives something this name, or a text contains it that a module looks up."""
    if isinstance(node, ast.Attribute):
        return node.attr == name and isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name
    if isinstance(node, ast.ClassDef):
        return node.name == name
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    return isinstance(node, ast.Constant) and node.value == name


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{name}"


def _told(library: str, parts: tuple[PrivatePart, ...]) -> list[str]:
    return [
        f"{library} {version(library)}: {part.file}: {part.owner}.{part.name}: {problem}: {part.needed_for}"
        for part in parts
        if (problem := _missing(part))
    ]


@pytest.mark.parametrize("library", PARTS)
def test_every_private_part_is_where_it_was(library: str) -> None:
    told = _told(library, PARTS[library])
    assert not told, "\n".join(told)


def test_torch_still_has_its_lerp_of_many_tensors() -> None:
    assert callable(getattr(torch, "_foreach_lerp_", None)), f"torch {torch.__version__}: the moving average needs it"


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (_ENGINE("all_reduce", "x", (), True), "it is no method any more"),
        (_ENGINE("was_step_applied", "x", ("of",)), "it takes []"),
        (_ENGINE("was_step_applied", "x", (), True), "its class does not call it any more"),
        (_ENGINE("grad_scaler", "x"), "it is gone"),
        (PrivatePart("deepspeed/runtime/engine.py", "Engine", "step", "x"), "its class is gone"),
        (PrivatePart("deepspeed/engine.py", "DeepSpeedEngine", "step", "x"), "its file is gone"),
        (PrivatePart(_WORKERS, "", "TORCHELASTIC_SIGNALS", "x"), "it is gone"),
    ],
)
def test_a_part_that_has_moved_is_named_with_what_needs_it(part: PrivatePart, problem: str) -> None:
    (told,) = _told("deepspeed", (part,))
    assert told.startswith(f"deepspeed {version('deepspeed')}: {part.file}: {part.owner}.{part.name}: {problem}")
    assert told.endswith(": x")


def test_each_librarys_private_parts_are_known_in_one_module() -> None:
    found = {
        (module, str(path.relative_to(PACKAGE)))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported(node)
        for module in ROOMS
        if name == module or name.startswith(f"{module}.")
    }
    assert found == set(ROOMS.items())


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
