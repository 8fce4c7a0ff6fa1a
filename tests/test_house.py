"""No module imports a room above its own, and no import runs in a circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import glci_dist

PACKAGE = Path(glci_dist.__file__).parent
ROOMS = (
    *("config", "", "data", "cluster", "models", "runs", "checkpoints", "evaluation", "diagnosis", "training", "slurm"),
    "command line",
)
"""In the order of docs/architecture.md, each imports only what stands before it; "": the modules beside the rooms."""
_COMMAND_LINE = {"cli", "__main__", "extensions"}
_UP = {
    # What a print or an override looks like is asked of data/names.py, which imports nothing.
    ("compose", "data.names"),
}


def _imports(path: Path, *, at_once: bool) -> set[str]:
    """The modules of the package that a module imports: when it is imported itself, or ever."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("glci_dist"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("glci_dist.")]
        found |= {name.removeprefix("glci_dist.") for name in names if name != "glci_dist"}
    return found


def _modules(*, at_once: bool) -> dict[str, set[str]]:
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and "configs" not in path.parts
    }
    found = {name: _imports(path, at_once=at_once) for name, path in paths.items()}
    return {name: {each for each in imported if each in paths and each != name} for name, imported in found.items()}


def _room(module: str) -> str:
    return "command line" if module in _COMMAND_LINE else module.rpartition(".")[0].partition(".")[0]


def test_no_import_runs_upwards() -> None:
    up = [
        f"{module} imports {other}"
        for module, imported in _modules(at_once=False).items()
        for other in imported
        if ROOMS.index(_room(other)) > ROOMS.index(_room(module)) and (module, other) not in _UP
    ]
    assert up == []


def test_no_import_runs_in_a_circle() -> None:
    # static_order raises CycleError with the circle.
    assert len(list(graphlib.TopologicalSorter(_modules(at_once=True)).static_order())) > 150


def test_no_file_has_more_than_350_lines_and_no_function_more_than_50() -> None:
    long = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if len(text.splitlines()) > 350:
            long.append(path.name)
        functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
        long += [f"{path.name}: {each.name}" for each in functions if (each.end_lineno or 0) - each.lineno >= 50]
    assert long == []
