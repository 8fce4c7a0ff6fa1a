"""What a part of the user's breaks is said in one line before anything starts, which names the key and the rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.data.holes import check_holes
from glci_dist.errors import UserError
from glci_dist.models.batch_norm import BatchNorm2d, ConvertedBatchNorm2d
from glci_dist.models.build import build_completion, check_custom
from glci_dist.training.callbacks.build import custom_callbacks
from glci_dist.training.gan_metrics import completion_metrics
from glci_dist.training.loggers.base import RunInfo
from glci_dist.training.loss_terms import example_completions, loss_terms
from glci_dist.training.metric_registry import Metric, OverSteps
from glci_dist.training.setup import prepare
from glci_dist.training.step_parts import step_parts
from tests.extending.test_extending import MINE
from tests.small_run import small

CPU = torch.device("cpu")
COMPLETION, DISCRIMINATOR = "model.completion.custom", "model.discriminator.custom"


EXAMPLES = [example_completions(CPU, size=32, patch=20)]


def composed(*words: str, folder: Path = Path("nowhere")) -> compose.Config:
    return compose.load(small(folder, folder, steps=(1, 0, 0), extra=words))


def broken(key: str, name: str) -> str:
    return f"{key}._target_=tests.extending.broken.{name}"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("WithDropout", "layer layers.2 is a Dropout2d: what it draws is no function of the step"),
        ("WithTorchsSpectralNorm", "layer layers.2 has torch's spectral norm"),
        ("WithBatchNorm1d", "layer layers.2.1 is a BatchNorm1d, which has no form over the global batch"),
        ("WithInstanceStatistics", "a forward pass changes layers.2.running_mean"),
        ("WithNoise", "two passes over the same photos differ"),
        ("WithoutMaskedInput", "must have one glci_dist.extensions.MaskedInput"),
        ("SeesTheHole", "the output depends on what lies in the hole, which is the answer"),
        ("OfHalfSize", "the output of two photos must be (2, 3, 32, 32), fp32 and finite, not (2, 3, 16, 16)"),
        ("WithoutSigmoid", "the output must lie in [0, 1]"),
        ("WithAnUnusedLayer", "parameter spare.weight is not trained"),
        ("WithAFrozenLayer", "parameter layers.0.weight is not trained"),
        ("MixesPhotos", "in evaluation a photo's result depends on the photos beside it"),
        ("DrawnElsewhere", "layers.0.weight differs from one construction to the next"),
        ("Fails", "a pass over photos of 32 px fails: "),
        ("Silent", "a pass over photos of 32 px fails: NotImplementedError"),
        ("InHalfPrecision", "the output of two photos must be (2, 3, 32, 32), fp32 and finite, not"),
        ("WithAnActivatedNorm", "layer layers.2 is a ActivatedNorm, which has no form over the global batch"),
    ],
)
def test_a_completion_network_that_breaks_a_rule_is_refused_by_name(name: str, rule: str) -> None:
    with pytest.raises(UserError) as refused:
        check_custom(composed(broken(COMPLETION, name)))
    assert rule in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_that_are_no_photos_are_refused_where_batch_norm_has_groups() -> None:
    folded = broken(COMPLETION, "FoldsPhotos")
    with pytest.raises(UserError, match=r"a batch norm gets 4 rows for 2 photos, .*set model\.batch_norm\.group=0"):
        check_custom(composed(folded, "model.batch_norm.group=2"))
    check_custom(composed(folded, "model.batch_norm.group=0"))


@pytest.mark.parametrize(
    ("name", "more", "rule"),
    [
        ("WithBatchNorm", "losses.r1=1", "penalties need each photo judged by itself"),
        ("LogitsAlone", "losses.r1=0", "logits_and_features must return (logits (N,), [activations])"),
        ("AMapOfLogits", "losses.r1=0", "the logits of two photos must be (2,), fp32 and finite, not (2, 1, 8, 8)"),
        ("WithoutFeatures", "losses.feature_matching=1", "losses.feature_matching needs activations"),
        ("Network", "losses.r1=0", "makes no Discriminators: derive it from glci_dist.extensions.Discriminators"),
    ],
)
def test_discriminators_that_break_a_rule_are_refused_by_name(name: str, more: str, rule: str) -> None:
    with pytest.raises(UserError) as refused:
        check_custom(composed(broken(DISCRIMINATOR, name), "model.discriminator.normalization=none", more))
    assert rule in str(refused.value)


def test_parts_that_keep_to_the_rules_pass() -> None:
    config = composed(
        broken(COMPLETION, "Network"),
        broken(DISCRIMINATOR, "Judges"),
        broken("holes.custom", "Squares"),
        broken("losses.terms.mine", "Term"),
        "losses.terms.mine.weight=0.5",
    )
    check_custom(config)
    check_holes(config.holes, 32)
    (term,) = loss_terms(config.losses, CPU, EXAMPLES)
    assert (term.metric.name, term.weight) == ("loss/mine", 0.5)


@pytest.mark.parametrize("part", ["losses.terms.mine", "metrics.mine"])
def test_what_fails_at_the_photo_size_of_one_phase_alone_is_refused(part: str) -> None:
    name = "AtThirtyTwo" if part.startswith("losses") else "MeanAtThirtyTwo"
    assert step_parts(composed(broken(part, name)), CPU)
    phase = ["phases.coarse.steps=1", "phases.coarse.size=16", "phases.coarse.completion_every=1"]
    with pytest.raises(UserError, match=f"{part} fails on two photos of 16 px: "):
        step_parts(composed(broken(part, name), *phase), CPU)


def test_torchs_batch_norms_are_converted_to_those_over_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MINE))
    network = build_completion(composed(f"{COMPLETION}._target_=unet.UNet", f"{COMPLETION}.width=4"))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 7
    assert all(isinstance(norm, ConvertedBatchNorm2d) and isinstance(norm, BatchNorm2d) for norm in norms)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("OfTheBatch", "one a photo, (2,), not ()"),
        ("OfTheNeighbours", "a photo's value depends on the photos beside it"),
        ("WithoutGradient", "has no finite gradient with respect to the outputs"),
        ("AtRandom", "two calls with the same completions differ"),
        ("AltersPhotos", "changes the tensors that it is given"),
        ("NoTensor", "must return a tensor of floats, not float"),
        ("Squares", "makes no LossTerm: derive it from glci_dist.extensions.LossTerm"),
    ],
)
def test_a_loss_term_that_breaks_a_rule_is_refused_by_name(name: str, rule: str) -> None:
    with pytest.raises(UserError) as refused:
        loss_terms(composed(broken("losses.terms.mine", name)).losses, CPU, EXAMPLES)
    assert str(refused.value).startswith("losses.terms.mine")
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("Empty", "draws empty holes"),
        ("TooLarge", "do not fit the photo or the local patch (holes.patch=20)"),
        ("WithItsOwnRandomness", "must be a function of its own words alone"),
        ("WithoutWords", "needs words, the number of random words"),
        ("OfFloats", "boxes int32 (n, M, 4)"),
        ("Term", "makes no HoleKind: derive it from glci_dist.extensions.HoleKind"),
    ],
)
def test_a_hole_kind_that_breaks_a_rule_is_refused_by_name(name: str, rule: str) -> None:
    with pytest.raises(UserError) as refused:
        check_holes(composed(broken("holes.custom", name)).holes, 32)
    assert str(refused.value).startswith("holes.custom")
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("WithoutMetric", "has no metric: set metric = Metric"),
        ("OfTheRunsOwn", "names in speed/ are the run's own"),
        ("Counts", "must return a tensor of floats, not torch.int64"),
    ],
)
def test_a_metric_that_breaks_a_rule_is_refused_by_name(name: str, rule: str) -> None:
    with pytest.raises(UserError) as refused:
        completion_metrics(composed(broken("metrics.mine", name)).metrics, CPU, EXAMPLES)
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("R", ""),
        ("ROfTheBatch", "one a photo, (2,), not ()"),
        ("ROfTheNeighbours", "a photo's value depends on the photos beside it"),
        ("RWithoutGradient", "losses.penalties.mine fails on two photos: RuntimeError"),
    ],
)
def test_a_penalty_that_breaks_a_rule_is_refused_by_name(name: str, rule: str) -> None:
    config = composed(broken("losses.penalties.mine", name), "model.discriminator.normalization=none")
    if not rule:
        assert len(step_parts(config, CPU).penalties) == 1
        return
    with pytest.raises(UserError) as refused:
        step_parts(config, CPU)
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("HalfAState", "has state_dict alone: a state that is saved needs both"),
        ("NoJson", "its state cannot be saved: TypeError"),
        ("DisplayThatDecides", "a display is on rank 0 alone and may not adjust a step"),
    ],
)
def test_a_callback_that_breaks_a_rule_is_refused_by_name(name: str, rule: str) -> None:
    config = composed(broken("callbacks.mine", name))
    with pytest.raises(UserError) as refused:
        custom_callbacks(config, RunInfo("run", Path("run"), {}, steps=1, rank=0, world_size=1))
    assert rule in str(refused.value)


@pytest.mark.parametrize("name", ["no group", "/", "group/", ""])
def test_a_metric_has_a_group_and_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="must be group/name"):
        Metric(name)


def test_a_reduction_may_be_given_by_its_name() -> None:
    assert Metric("a/b", over_steps="total").over_steps is OverSteps.TOTAL  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="most"):
        Metric("a/b", over_ranks="most")  # type: ignore[arg-type]


def test_two_metrics_of_one_name_are_refused(faces_shards: str, tmp_path: Path) -> None:
    words = small(faces_shards, tmp_path, steps=(1, 0, 0), extra=(broken("metrics.mine", "OfAnotherName"),))
    config = compose.load(words)
    with joined(config.engine) as world, pytest.raises(UserError, match="two metrics have the name contest/margin"):
        prepare(config, world)
    assert not (tmp_path / "run" / "attempts").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["callbacks.mine._target_=no_such_module.Mine"], "put the folder that holds no_such_module on PYTHONPATH"),
        (["callbacks.mine._target_=tests.extending.broken.Nothing"], "cannot be imported ("),
        (["callbacks.mine._target_=glci_dist.config.RESERVED_PORTS"], "is no class: name one"),
        (["callbacks.mine.patience=3"], "names no class: give callbacks.mine._target_, a dotted path"),
        (["callbacks.mine=3"], "callbacks.mine=3 names no class"),
        ([broken("losses.terms.mine", "Term"), "losses.terms.mine.powr=2"], "losses.terms.mine.powr is no argument of"),
        ([broken("losses.terms.mine", "Term"), "losses.terms.mine.power=much"], "power=much has the wrong type: float"),
        ([broken("losses.terms.mine", "Term"), "losses.terms.mine.colours=[a]"], "has the wrong type: list[int]"),
        (
            [broken("losses.terms.mine", "Term"), "losses.terms.mine.weight=-1"],
            "weight=-1 must be a number of at least",
        ),
        (
            [f"{COMPLETION}._target_=unet.UNet", f"{COMPLETION}.size=3"],
            "custom.size is the run's to give: leave it out",
        ),
        (["loggers.mine._target_=wandb_logger.WandbLogger"], "loggers.mine.project has no value"),
        (
            ["loggers.mine._target_=jsonl.JsonLines", "loggers.mine.file=https://u:hunter2@x/"],
            "loggers.mine.file: the credential file would be stored",
        ),
    ],
)
def test_a_part_that_cannot_be_made_is_one_line_when_the_configuration_is_read(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(MINE))
    with pytest.raises(UserError) as refused:
        composed(*words)
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_constructor_that_refuses_its_arguments_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MINE))
    config = composed(f"{COMPLETION}._target_=unet.UNet", f"{COMPLETION}.depth=9")
    with pytest.raises(
        UserError, match=r"unet\.UNet cannot be constructed: ValueError: depth=9 halves photos of 32 px 9 times"
    ):
        build_completion(config)
