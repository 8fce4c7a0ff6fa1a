"""What overrides make, what is refused and how it is said, and how a configuration is kept and compared."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from glci_dist import compose, stored_config
from glci_dist.config import Config
from glci_dist.data.holes import check_holes
from glci_dist.data.stages import check_all_holes
from glci_dist.errors import UserError
from glci_dist.models.sizes import check_models

_FOLDER = compose.config_folder()
_RECIPES = sorted(path.stem for path in (_FOLDER / "recipe").glob("*.yaml"))
_EXPERIMENTS = sorted(path.stem for path in (_FOLDER / "experiment").glob("*.yaml"))


@functools.cache
def _load(*overrides: str) -> Config:
    return compose.load(["data.shards=x", *overrides])


def _refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        _load(*overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def _differing_keys(one: Config, other: Config) -> set[str]:
    return {line.split(":")[0] for line in compose.differences(one, other)}


@pytest.mark.parametrize("recipe", _RECIPES)
@pytest.mark.parametrize("experiment", _EXPERIMENTS)
def test_every_recipe_goes_with_every_experiment(recipe: str, experiment: str) -> None:
    config = _load(f"recipe={recipe}", f"experiment={experiment}")
    check_holes(config.holes, config.data.size)
    check_models(config)
    compose.check_world(config, world_size=2, device="cpu")
    assert config.name == experiment
    coarse = ["coarser", "coarse"] if recipe == "modern" else []
    assert list(config.phases) == [*coarse, "completion", "discriminator", "joint"]
    assert all(phase.steps > 0 for name, phase in config.phases.items() if name != "coarser")


@pytest.mark.parametrize("kind", ["box", "boxes", "freeform", "centre"])
@pytest.mark.parametrize("experiment", _EXPERIMENTS)
def test_every_kind_of_holes_goes_with_every_experiment_at_all_of_its_sizes(experiment: str, kind: str) -> None:
    check_all_holes(_load(f"experiment={experiment}", f"holes.kind={kind}", "phases.coarser.steps=5"))


def test_the_two_recipes_differ_in_these_settings_alone() -> None:
    optimizers = {f"optimizers.{side}.{key}" for side in ("completion", "discriminator") for key in ("kind", "betas")}
    rho = {f"optimizers.{side}.rho" for side in ("completion", "discriminator")}
    completion = {f"phases.completion.{key}" for key in ("completion_lr", "lr_warmup")}
    network = {f"model.completion.{key}" for key in ("enlarge", "fill", "residual", "skips", "blocks")}
    changed = ("completion_lr", "discriminator_lr", "discriminator_every", "lr_schedule", "lr_final", "balance")
    joint = {f"phases.joint.{key}" for key in changed}
    # configs/tuning/faces64-modern.yaml
    tuned = {"model.completion.dilations", "model.completion.mirror", "model.batch_norm.group"}
    tuned |= {f"phases.{phase}.steps" for phase in ("completion", "discriminator", "joint")}
    paper, modern = _load("recipe=paper"), _load("recipe=modern")
    assert modern.phases.pop("coarse").steps
    assert not modern.phases.pop("coarser").steps
    assert _differing_keys(paper, modern) == {
        *(
            "losses.reconstruction",
            "losses.adversarial",
            "losses.feature_matching",
            "engine.ema",
            "phases.discriminator.discriminator_lr",
        ),
        *(optimizers | rho | network | completion | joint | tuned),
    }


def test_an_experiment_leaves_how_the_networks_are_trained_to_the_recipe() -> None:
    network = [f"model.completion.{key}" for key in ("enlarge", "fill", "residual", "skips", "blocks")]
    theirs = ("losses.", "optimizers.", "engine.", *network)
    differing = _differing_keys(_load("experiment=faces64"), _load("experiment=places256"))
    assert {key for key in differing if key.startswith(theirs) or key.endswith(("_lr", "alpha"))} == set()


def test_an_override_wins_over_the_experiment_and_the_experiment_over_the_default() -> None:
    assert Config().holes.patch == 40
    assert _load("experiment=faces160").holes.patch == 96
    assert _load("experiment=faces160", "holes.patch=100").holes.patch == 100
    assert _load("holes.patch=41", "experiment=faces160").holes.patch == 41


def test_letters_of_any_language_need_no_quotes_and_bytes_that_are_no_text_are_told_as_the_locales() -> None:
    config = _load("name=é", "data.val=/фото/a b", "data.shards=../写真")
    assert (config.name, config.data.val, config.data.shards) == ("é", "/фото/a b", "../写真")
    # As Python has the bytes of é where the locale says ASCII.
    said = _refusal("name=\udcc3\udca9")
    assert said.startswith(r"'name=\udcc3\udca9' is no text in this shell's encoding")
    assert "export LC_ALL=C.UTF-8" in said


def test_a_mistake_in_what_is_for_a_jobs_processes_is_told_without_their_values() -> None:
    said = _refusal("cluster.environment={ENTRANCE: hunter2")
    assert said.startswith("'cluster.environment=...' is no override")
    assert "hunter2" not in said


def test_an_override_changes_its_key_alone() -> None:
    assert compose.differences(_load(), _load("phases.joint.alpha=0.5")) == ["phases.joint.alpha: 0.0004 / 0.5"]
    assert compose.differences(_load(), _load("++engine.ema=0.5")) == ["engine.ema: 0.999 / 0.5"]
    assert compose.differences(_load(), _load("losses={region: photo}")) == ["losses.region: hole / photo"]


def test_equal_configurations_have_no_differences() -> None:
    assert compose.differences(_load("seed=3"), compose.load(["data.shards=x", "seed=3"])) == []


def test_a_key_that_only_one_configuration_has_is_a_difference() -> None:
    added = _load("+phases={last: {steps: 5, completion_every: 1}}")
    assert _differing_keys(_load(), added) == _differing_keys(added, _load())
    assert "phases.last.steps" in _differing_keys(_load(), added)
    assert compose.differences(_load(), _load("+phases={last: {steps: 0, completion_every: 1}}")) == []
    removed = _load("~phases.joint")
    assert "phases.joint.steps" in _differing_keys(_load(), removed)


def test_the_same_phases_in_another_order_are_a_difference() -> None:
    turned = replace(_load(), phases=dict(reversed(_load().phases.items())))
    assert _differing_keys(_load(), turned) == {"phases"}


@pytest.mark.parametrize("experiment", _EXPERIMENTS)
def test_a_configuration_survives_being_written_and_read(tmp_path: Path, experiment: str) -> None:
    config = _load(f"experiment={experiment}", "data.mean_colour=[0.1,0.2,0.3]", "optimizers.completion.eps=3e-9")
    path = tmp_path / "config.yaml"
    path.write_text(compose.to_yaml(config))
    assert stored_config.read(path).config == config
    assert list(stored_config.read(path).config.phases) == list(config.phases)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is no configuration"),
        (b"name: [", "is no configuration"),
        (b"hello", "is no configuration"),
        (b"- 1\n", "is no configuration"),
        (b"\xff\xfe\x00", "is no configuration"),
        (b"nope: 3\n", "nope"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_its_name(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        stored_config.read(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("globalbatch=3", "global_batch"),
        ("data.sise=64", "data.size"),
        ("data={sise: 64}", "data.size"),
        ("hole.patch=3", "holes.patch"),
        ("precision=fp32", "engine.precision"),
        ("patch=3", "holes.patch"),
        ("phases.joint.stepz=3", "phases.joint.steps"),
        ("+data.sise=64", "data.size"),
        ("++data.sise=64", "data.size"),
        ("recipes=paper", "recipe"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_one_that_was_meant(override: str, meant: str) -> None:
    assert f"did you mean {meant}?" in _refusal(override)


def test_a_key_like_no_other_is_still_named() -> None:
    assert _refusal("+zzzzzzzz=1").startswith("zzzzzzzz is no configuration key")


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("global_batch=abc", "global_batch must be a whole number"),
        ("global_batch=1e9", "global_batch must be a whole number"),
        ("data.size=1.5", "data.size must be a whole number"),
        ("phases.joint.alpha=much", "phases.joint.alpha must be a number"),
        ("data.flip=maybe", "data.flip must be true or false"),
        ("data.shards=[1]", "data.shards must be a word"),
        ("data.short_edge=64", "data.short_edge must be a list of whole numbers"),
        ("data.short_edge=[a,b]", "data.short_edge must be a list of whole numbers"),
        ("data.mean_colour=red", "data.mean_colour must be a list of numbers or null"),
        ("losses.region=null", "losses.region must be a word"),
        ("data=3", "data must be a group of keys"),
        ("engine=null", "engine must be a group of keys"),
    ],
)
def test_a_wrong_type_is_answered_with_the_right_one(override: str, rule: str) -> None:
    refusal = _refusal(override)
    assert rule in refusal
    assert override in refusal


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe=nope", "recipe=nope is not known: choose one of modern, paper"),
        ("experiment=nope", "choose one of demo, faces128"),
        ("engine.precision=fp8", "engine.precision=fp8 is not known: choose one of bf16, fp16, fp32"),
        ("phases.joint.lr_schedule=steps", "choose one of constant, linear, cosine"),
        ("global_batch", "'global_batch' is no override: write KEY=VALUE"),
        ("name=a=b", "'name=a=b' is no override"),
        ("phases.fourth.steps=3", "no phase 'fourth'"),
        ("~data.size", "a key cannot be removed"),
        ("~seed", "a key cannot be removed"),
        ("~phases", "phases is empty"),
        ("+data.size=64", "write data.size=... without the +"),
        ("name=${nope}", "name: ${nope} stands for no key of the configuration"),
        ("name=${oc.env:NOT_SET}", "name: Environment variable 'NOT_SET' not found: write the value itself"),
        ("cluster=null", "a group's choice must be a string, the name of a file in configs/"),
        ("cluster=[nope]", "cluster=nope is not known: write cluster=NAME"),
        ("recipe={a: 1}", "recipe is a choice of a file in configs/recipe: write recipe=NAME"),
        ("cluster.sbatch.x={a: 1}", "cluster.sbatch.x={a: 1} has the wrong type: each value is one word, or null"),
        ("cluster.sbatch.x.y=1", "cluster.sbatch.x.y=1 has the wrong type: each value is one word, or null"),
        ("cluster.environment={X: [1]}", "cluster.environment.X=[1] has the wrong type: each value is one word, or"),
        ("experiment=null", "string"),
    ],
)
def test_what_cannot_be_composed_is_said_in_one_line(override: str, said: str) -> None:
    assert said in _refusal(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("losses.r1=1", "losses.r1=1.0 needs each photo judged by itself"),
        ("losses.gradient_penalty=10", "set model.discriminator.normalization to spectral or none"),
        ("losses.adversarial=wasserstein", "set losses.gradient_penalty=10"),
        ("losses.label_smoothing=1", "at least 0 and less than 1"),
        ("losses.penalty_every=0", "at least 1"),
        ("model.discriminator.slope=1", "at least 0 and less than 1"),
        ("phases.completion.balance=1", "phases.completion.balance=1.0 weighs the adversarial loss"),
        ("monitor.evaluate_every=5", "needs held-out photos: set data.val"),
        ("monitor.evaluate_photos=1", "at least 2"),
        ("name=", "name=''"),
        ("name=../there", "name='../there'"),
        ("runs=", "runs is empty"),
        ("seed=-1", "at least 0"),
        ("seed=99999999999999999999", "less than 2**63"),
        ("global_batch=0", "at least 1"),
        ("data.short_edge=[64]", "[least, greatest]"),
        ("data.short_edge=[80,70]", "[least, greatest]"),
        ("data.short_edge=[60,70]", "data.size=64 <= least"),
        ("data.mean_colour=[0.5]", "[red, green, blue]"),
        ("data.mean_colour=[124,117,104]", "each in 0 to 1"),
        ("data.tolerance=-0.1", "at least 0"),
        ("data.order.lanes=5", "data.order.lanes=5 does not divide global_batch=32"),
        ("model.completion.width=0", "greater than 0"),
        ("model.discriminator.width=-1", "greater than 0"),
        ("optimizers.completion.betas=[0.9]", "must be two numbers"),
        ("optimizers.discriminator.betas=[0.9,1.0]", "less than 1"),
        ("engine.ema=1", "less than 1"),
        ("engine.spike_factor=0.5", "greater than 1"),
        ("engine.zero_stage=3", "choose 0 or 1"),
        ("engine.timeout_s=0", "greater than 0"),
        ("engine.gradient_clip=nan", "is no finite number"),
        ("phases.joint.alpha=inf", "is no finite number"),
        ("phases.joint.alpha=-1", "at least 0"),
        ("phases.joint.steps=-1", "at least 0"),
        ("phases.completion.completion_every=0", "updates no network"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_with_its_key(override: str, said: str) -> None:
    refusal = _refusal(override)
    assert said in refusal
    assert override.split("=")[0].removesuffix(".completion_every") in refusal


def test_a_schedule_without_a_step_is_refused() -> None:
    assert "nothing to train" in _refusal(*(f"phases.{name}.steps=0" for name in _load().phases))


def test_a_file_of_the_users_that_is_no_yaml_is_named_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\ndata: {size: 64\n")
    said = _refusal(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert said.startswith("a file of the configuration is no YAML: while parsing a flow mapping")
    assert f'"{tmp_path}/experiment/mine.yaml", line 3' in said


def test_what_the_recipe_derives_from_size_and_batch_follows_their_overrides() -> None:
    coarse = _load("data.size=96", "data.short_edge=[96,96]", "global_batch=24").phases["coarse"]
    assert (coarse.size, coarse.batch) == (48, 48)
    small = _load("data.size=36", "data.short_edge=[36,36]").phases
    assert (small["coarse"].size, small["coarser"].size) == (16, 8)
    groups = {24: 0, 32: 16, 33: 0, 64: 32}
    lanes = "data.order.lanes=1"
    assert {each: _load(f"global_batch={each}", lanes).model.batch_norm.group for each in groups} == groups
    assert _load("engine.accumulation=2").model.batch_norm.group == 0
    untuned = _load("~tuning")
    assert (untuned.phases["coarse"].steps, untuned.phases["completion"].steps) == (0, 900)


def test_a_key_without_a_default_must_be_given() -> None:
    with pytest.raises(UserError, match=r"data\.shards has no value: add data\.shards="):
        compose.load([])
    assert _refusal("~experiment").startswith("a run has one recipe and one experiment: choose each by one name")
    assert _refusal("tuning=demo-modern").endswith("follows from experiment and recipe: ~tuning leaves it out")


@pytest.mark.parametrize(
    ("overrides", "world_size", "device", "said"),
    [
        ((), 3, "cpu", "global_batch=32 is not a multiple of 3"),
        (("engine.accumulation=4",), 16, "cpu", "64 (16 ranks x engine.accumulation=4)"),
        (("engine.precision=fp16",), 1, "cpu", "engine.precision=fp16 needs a GPU"),
        (("global_batch=4", "engine.accumulation=4"), 1, "cpu", "batch norm"),
        (
            ("engine.accumulation=2", "model.batch_norm.group=16"),
            2,
            "cpu",
            "=16, but each of 2 ranks passes 8 photos at a time (global_batch=32, engine.accumulation=2), neither "
            "whole groups nor an equal part of one: use 8 or 4 or 2 or 0 (0 is the whole batch); a run that goes on",
        ),
    ],
)
def test_what_a_world_cannot_run_is_refused(
    overrides: tuple[str, ...], world_size: int, device: str, said: str
) -> None:
    config = _load(*overrides)
    with pytest.raises(UserError) as raised:
        compose.check_world(config, world_size, device)
    assert said in str(raised.value)


def test_fp16_runs_on_a_gpu_and_slots_may_be_cut_as_often_as_they_divide() -> None:
    compose.check_world(_load("engine.precision=fp16", "engine.accumulation=4"), 8, "cuda")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model.batch_norm.group=5",), "model.batch_norm.group=5 does not divide global_batch=32: use 0, or a"),
        (
            ("engine.zero_stage=1",),
            "optimizers.completion.kind=muon updates whole matrices, and engine.zero_stage=1 gives",
        ),
        (("model.batch_norm.group=1",), "model.batch_norm.group=1 leaves batch norm one photo: use 0, or at least 2"),
        (("losses.adversarial=hinge", "losses.label_smoothing=0.1"), "losses.adversarial=hinge has none: set it to 0"),
        (
            ("model.discriminator.batch_norm=together", "model.discriminator.normalization=none"),
            "model.discriminator.normalization=none has no batch norm",
        ),
    ],
)
def test_settings_of_the_contest_that_do_not_go_together_are_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _load(*overrides)
