"""Components of the user's own: the configuration names a class (``_target_``, a dotted path) and its arguments.

The constructor is the schema of the arguments: each is checked against its annotation before anything starts. Values
that the run knows (such as the photos' size) are passed to constructors that have a parameter of that name.
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import sys
import sysconfig
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from glci_dist.config import Config
from glci_dist.config.fields import slots_in
from glci_dist.errors import UserError, in_a_line

TARGET = "_target_"

_SLOTS = slots_in(Config)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Component:
    """A class named in the configuration, with checked arguments."""

    key: str
    """Dotted key of the configuration, such as ``losses.terms.edges``."""
    target: str
    """Dotted path of the class."""
    factory: Callable[..., Any]
    arguments: Mapping[str, Any]
    """The arguments in the configuration."""
    weight: float = 1.0
    """Weight of a loss term or a penalty."""

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    def make(self, base: type[Made], **provided: Any) -> Made:
        """Construct it; ``provided`` arguments are passed if the constructor has parameters of these names.

        Raises ``UserError`` if the constructor raises, or if the instance is no ``base``.
        """
        wanted = inspect.signature(self.factory).parameters
        try:
            made = self.factory(**self.arguments, **{key: each for key, each in provided.items() if key in wanted})
        except Exception as error:  # the user's class can raise anything
            raise UserError(f"{self.key}: {self.target} cannot be constructed: {in_a_line(error)}") from error
        if not isinstance(made, base):
            where = base.__module__ if base.__module__.startswith("torch") else "glci_dist.extensions"
            raise UserError(
                f"{self.key}: {self.target} makes no {base.__name__}: derive it from {where}.{base.__name__}"
            )
        return made


def one(key: str, node: Mapping[str, Any]) -> Component:
    """The component at ``key``. Raises ``UserError``."""
    return _component(key, node, _SLOTS[key].provided)


def by_name(key: str, nodes: Mapping[str, Any]) -> list[Component]:
    """The components of the mapping at ``key``, in order, without those set to null. Raises ``UserError``."""
    return [_component(f"{key}.{name}", node, _SLOTS[key].provided) for name, node in nodes.items() if node is not None]


def components(config: Config) -> Iterator[Component]:
    """Every component in a configuration. Raises ``UserError`` for the first with an error."""
    for key, slot in _SLOTS.items():
        node = attrgetter(key)(config)
        if slot.by_name:
            yield from by_name(key, node)
        elif node:
            yield one(key, node)


def modules(config: Config) -> list[Path]:
    """The user's own files and packages: those that define components, and those imported from the same folders."""
    roots = set()
    for component in components(config):
        top = sys.modules[component.target.partition(".")[0]]
        place = _place(top)
        if place is not None:
            roots.add(place.parent)
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")}
    found = {_place(module) for name, module in list(sys.modules.items()) if "." not in name}
    return sorted(each for each in found if each and each.parent in roots - installed and each.name != "glci_dist")


def _place(module: ModuleType) -> Path | None:
    """The file of a module or the folder of a package, if it has one."""
    file, paths = getattr(module, "__file__", None), list(getattr(module, "__path__", ()))
    if file is None:
        return Path(paths[0]) if len(paths) == 1 else None
    return Path(file).parent if Path(file).name == "__init__.py" else Path(file)


def _component(key: str, node: Any, provided: tuple[str, ...]) -> Component:
    if not isinstance(node, Mapping) or not isinstance(node.get(TARGET), str):
        raise UserError(f"{key}={node} names no class: give {key}.{TARGET}, a dotted path such as my_module.MyClass")
    target = node[TARGET]
    given = {name: value for name, value in node.items() if name != TARGET}
    weight = 1.0
    if key.startswith("losses."):
        weight = _weight(key, given.pop("weight", 1.0))
    factory = _imported(key, target)
    return Component(key, target, factory, _arguments(key, target, factory, given, provided), weight)


def _weight(key: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0 or weight == float("inf"):
        raise UserError(f"{key}.weight={weight} must be a number of at least 0")
    return float(weight)


def _imported(key: str, target: str) -> Callable[..., Any]:
    module = target.partition(".")[0]
    try:
        path, _, name = target.rpartition(".")
        found = pkgutil.resolve_name(f"{path}:{name}")
    except Exception as error:  # the user's module can raise anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module
        way_out = f"put the folder that holds {module} on PYTHONPATH" if is_missing else "mend that, and try again"
        raise UserError(f"{key}.{TARGET}={target} cannot be imported ({in_a_line(error)}): {way_out}") from error
    if not callable(found):
        raise UserError(f"{key}.{TARGET}={target} is no class: name one")
    return typing.cast("Callable[..., Any]", found)


def _arguments(
    key: str, target: str, factory: Callable[..., Any], given: Mapping[str, Any], provided: tuple[str, ...]
) -> dict[str, Any]:
    """The given arguments, checked against the constructor's parameters and annotations."""
    signature = inspect.signature(factory).parameters
    own = {
        name: each
        for name, each in signature.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and name not in provided
    }
    takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.values())
    for name in given:
        if name in provided:
            raise UserError(f"{key}.{name} is the run's to give: leave it out")
        if name not in own and not takes_any:
            raise UserError(f"{key}.{name} is no argument of {target}: it takes {', '.join(own) or 'none'}")
    for name, each in own.items():
        if each.default is each.empty and name not in given:
            raise UserError(f"{key}.{name} has no value: {target} needs one")
    hints = _hints(factory)
    checked = {name: _checked(f"{key}.{name}", given[name], hints.get(name, Any)) for name in own if name in given}
    return {**given, **checked}


def _checked(key: str, value: Any, kind: Any) -> Any:
    """``value`` as an annotation's type; raises ``UserError`` if it is of another one."""
    try:
        schema = OmegaConf.structured(dataclasses.make_dataclass("Argument", [("value", kind)]))
    except OmegaConfBaseException:
        # OmegaConf does not support this annotation.
        return value
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, {"value": value})).value  # type: ignore[union-attr]
    except OmegaConfBaseException as error:
        said = getattr(kind, "__name__", None) if not typing.get_args(kind) else None
        raise UserError(
            f"{key}={value} has the wrong type: {said or str(kind).replace('typing.', '')} is wanted"
        ) from error


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a constructor; empty if they cannot be resolved at run time."""
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except Exception:  # annotations that exist only for a type checker
        return {}
