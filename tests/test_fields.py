"""What fields of a schema declare: rules for their values, and mappings whose keys are the user's."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from glci_dist import compose, free_keys
from glci_dist.config import Config, PhaseConfig
from glci_dist.config.fields import Rule, above, at_least, below_one, free_in, free_mapping, one_of, rules_of, walk

_SHORT = Rule(lambda value: len(value) < 3, "is too long")


@dataclass
class _Group:
    kind: str = one_of("plain", "fancy")
    count: int = at_least(2, Rule(lambda count: count % 2 == 0, "must be even"), default=4)
    width: float = above(0, default=1.0)
    share: float = below_one(default=0.5)
    named: dict[str, str] = free_mapping(_SHORT)
    other: dict[str, str] = free_mapping()


@dataclass
class _Schema:
    group: _Group = field(default_factory=_Group)
    flag: bool = True


def _told(key: str, value: object) -> list[str]:
    return [rule.otherwise for rule in rules_of(dict(walk(_Schema))[key]) if not rule.holds(value)]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("group.kind", "fancy", []),
        ("group.kind", "odd", ["is not known: choose one of plain, fancy"]),
        ("group.count", 2, []),
        ("group.count", 1, ["is too small: it must be at least 2", "must be even"]),
        ("group.width", 1e-9, []),
        ("group.width", 0, ["is too small: it must be greater than 0"]),
        ("group.share", 0, []),
        ("group.share", 1.0, ["must be at least 0 and less than 1"]),
        ("group.share", -0.1, ["must be at least 0 and less than 1"]),
        ("flag", "anything", []),
    ],
)
def test_a_field_declares_what_its_value_has_to_be(key: str, value: object, told: list[str]) -> None:
    assert _told(key, value) == told


def test_a_field_with_a_rule_has_its_default_and_the_first_choice_is_one() -> None:
    group = _Schema().group
    assert (group.kind, group.count, group.width, group.share, group.named) == ("plain", 4, 1.0, 0.5, {})
    assert group.named is not _Schema().group.named


def test_mappings_whose_keys_are_the_users_are_found_in_groups_with_the_rule_for_their_values() -> None:
    assert free_in(_Schema) == {"group.named": _SHORT, "group.other": None}


def test_every_default_of_the_schema_obeys_its_own_rules() -> None:
    values = compose.flat(compose.load(["data.shards=x"]))
    assert [
        key
        for key, each in [*walk(Config), *((f"phases.joint.{key}", each) for key, each in walk(PhaseConfig))]
        for rule in rules_of(each)
        if not rule.holds(values[key])
    ] == []


def test_every_number_of_the_schema_has_a_rule() -> None:
    # Those of holes are held against the size of photos (data/holes.py).
    declared = [*walk(Config), *walk(PhaseConfig, "phases.")]
    bare = [key for key, each in declared if each.type in ("int", "float") and not rules_of(each)]
    assert [key for key in bare if not key.startswith("holes.")] == []


def test_what_is_said_of_an_override_has_no_plus_that_was_not_given() -> None:
    word = free_keys.freed("cluster.sbatch.x=1")
    assert word == "++cluster.sbatch.x=1"
    assert free_keys.as_given(f"{word} has the wrong type") == "cluster.sbatch.x=1 has the wrong type"
    assert free_keys.as_given("++seed=1 is no override") == "++seed=1 is no override"
