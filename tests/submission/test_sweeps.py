"""What an override of a sweep stands for, and how its runs are called."""

from __future__ import annotations

import pytest

from glci_dist.errors import UserError
from glci_dist.slurm.submit import requests
from glci_dist.slurm.sweeps import values

PLAIN = ["data.shards=shards/train", "name=run"]


@pytest.mark.parametrize(
    ("word", "made"),
    [
        ("seed=1,2", ["1", "2"]),
        ("++seed=1, 2", ["1", " 2"]),
        # As they were written, and not as a number is printed.
        ("phases.joint.alpha=4e-4,1E-3,.5", ["4e-4", "1E-3", ".5"]),
        ("data.short_edge=[64,71],[64, 80]", ["[64,71]", "[64, 80]"]),
        ("cluster.sbatch={a: 1,b: 2}", ["{a: 1,b: 2}"]),
        ("cluster.partition='main,high'", ["'main,high'"]),
        ("cluster.setup=['a, b',\"c, d\"]", ["['a, b',\"c, d\"]"]),
        ("data.val='a,b',\"c,d\",e", ["'a,b'", '"c,d"', "e"]),
        (r"data.val=a\,b,c", [r"a\,b", "c"]),
        ("data.val=${oc.env:ONE,two},three", ["${oc.env:ONE,two}", "three"]),
        ("data.shards=https://h/a,s3://b/c", ["https://h/a", "s3://b/c"]),
        # What Hydra takes only in quotes, which the configuration's composing puts around it.
        ("data.shards=https://h/a?v=1,https://h/b?v=2", ["https://h/a?v=1", "https://h/b?v=2"]),
        ("runs=é,写真", ["é", "写真"]),
        ("data.val=", [""]),
        ("data.val=null,x", ["null", "x"]),
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("seed=range(8, 0, -4)", ["8", "4"]),
        ("phases.joint.alpha=range(0,1,0.25)", ["0.0", "0.25", "0.5", "0.75"]),
        ("seed=choice(3,5)", ["3", "5"]),
        ("data.val=choice('a,b',c)", [r"a\,b", "c"]),
        # No overrides: composing says what is wrong with them.
        ("cluster.environment={A: b, C: d", ["{A: b, C: d"]),
        ("cluster.sbatch.export=ALL,A=b", ["ALL", "A=b"]),
        ("name=a=b", ["a=b"]),
        ("seed=range(1,3),5", ["range(1,3),5"]),
    ],
)
def test_an_override_stands_for_one_with_each_of_its_values(word: str, made: list[str]) -> None:
    assert values(word) == [f"{word.partition('=')[0]}={value}" for value in made]


@pytest.mark.parametrize("word", ["seed", "~phases.joint", "recipe"])
def test_a_word_without_a_value_stands_for_itself(word: str) -> None:
    assert values(word) == [word]


@pytest.mark.parametrize("value", ["range(1,4)", "choice(1,2,3)", "1,2,3"])
def test_a_list_a_range_and_a_choice_of_the_same_values_are_the_same_runs(value: str) -> None:
    made = requests([*PLAIN, f"seed={value}"])
    assert [(each.config.name, each.config.seed) for each in made] == [(f"run-seed={n}", n) for n in (1, 2, 3)]
    assert made[0].overrides == [*PLAIN, "seed=1", "name='run-seed=1'"]


def test_a_range_goes_with_a_list() -> None:
    made = requests([*PLAIN, "seed=range(2)", "phases.joint.alpha=4e-4,1e-3"])
    assert [each.config.name for each in made] == [
        f"run-seed={seed}_phases.joint.alpha={alpha}" for seed in (0, 1) for alpha in ("4e-4", "1e-3")
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("experiment=glob(*)", "experiment: glob() and interval() list no values: write experiment=A,B"),
        ("engine.ema=interval(0.9,1)", "engine.ema: glob() and interval() list no values"),
        ("seed=range(3,3)", "seed: the sweep has no value"),
        ("seed=range(1,4,0)", "seed: range() arg 3 must not be zero"),
        ("cluster.nodes=range(1,3)", "cluster.nodes=range(1,3): a sweep is one job array"),
        ("seed=range(1,3),5", "seed"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(word: str, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        requests([*PLAIN, word])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
