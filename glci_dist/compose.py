"""Composing, checking and writing a run's configuration, before anything starts.

A key that does not exist, a wrong type or a value that breaks a rule ends the command with one
line and exit code 2 (``UserError``).
"""

from __future__ import annotations

import locale
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from glci_dist import credentials, free_keys
from glci_dist.components import components
from glci_dist.config import Config, PhaseConfig
from glci_dist.data.names import printable
from glci_dist.errors import UserError
from glci_dist.mistakes import explain, removed_key, unknown_key
from glci_dist.urls import same_url, without_secrets_in

_CHOICES = {
    "holes.kind": ("box", "boxes", "freeform", "centre"),
    "model.completion.kind": ("glcic", "context_encoder"),
    "model.completion.enlarge": ("deconvolution", "resize"),
    "model.discriminator.kind": ("global_local", "global", "local"),
    "model.discriminator.normalization": ("batch", "spectral", "none"),
    "model.discriminator.batch_norm": ("apart", "together"),
    "losses.reconstruction": ("l2", "l1"),
    "losses.region": ("hole", "photo"),
    "losses.adversarial": ("non_saturating", "saturating", "hinge", "least_squares", "wasserstein"),
    "optimizers.completion.kind": ("adam", "adadelta"),
    "optimizers.discriminator.kind": ("adam", "adadelta"),
    "engine.device": ("auto", "cpu", "cuda"),
    "engine.precision": ("bf16", "fp16", "fp32"),
    "engine.not_finite": ("skip", "stop", "rollback"),
    "engine.spike": ("skip", "stop", "rollback"),
    **{
        f"doctor.{state}": ("warn", "balance", "rollback", "stop")
        for state in ("diverging", "collapse", "checkerboard", "no_contest", "dominates", "asleep")
    },
    "cluster.executor": ("slurm", "local", "debug"),
}

_AT_LEAST = {
    "seed": 0,
    "global_batch": 1,
    "data.size": 4,
    "data.workers": 0,
    "data.prefetch": 1,
    "data.order.lanes": 1,
    "data.order.block_shards": 1,
    "data.tolerance": 0,
    "data.cache.max_gib": 0,
    "data.cache.retries": 0,
    "data.cache.backoff_s": 0,
    "losses.gradient_penalty": 0,
    "losses.r1": 0,
    "losses.penalty_every": 1,
    "losses.instance_noise": 0,
    "losses.feature_matching": 0,
    "losses.perceptual": 0,
    "losses.total_variation": 0,
    "optimizers.completion.weight_decay": 0,
    "optimizers.discriminator.weight_decay": 0,
    "engine.gradient_clip": 0,
    "engine.accumulation": 1,
    "engine.not_finite_limit": 1,
    "engine.spike_factor": 0,
    "engine.spike_window": 2,
    "engine.pass_over": 1,
    "engine.rollbacks": 0,
    "engine.threads": 0,
    "checkpoints.every": 0,
    "checkpoints.run_ahead": -1,
    "checkpoints.keep": 2,
    "checkpoints.keep_every": 0,
    "checkpoints.stop_within_s": 0,
    "monitor.scalars_every": 1,
    "monitor.pictures_every": 0,
    "monitor.pictures": 1,
    "monitor.evaluate_every": 0,
    "monitor.evaluate_photos": 2,
    "monitor.straggler_share": 0,
    "monitor.straggler_s": 0,
    "doctor.window": 0,
    "doctor.every": 1,
    "cluster.nodes": 1,
    "cluster.min_nodes": 0,
    "cluster.workers": 1,
    "cluster.gpus": 0,
    "cluster.cpus": 0,
    "cluster.memory_gb": 0,
    "cluster.time_min": 1,
    "cluster.signal_lead_s": 0,
    "cluster.requeues": 0,
    "cluster.idle_starts": 1,
    "cluster.restarts": 0,
    "cluster.same_step": 1,
    "cluster.node_crashes": 0,
    "cluster.exclusions": 0,
    "cluster.node_timeout_s": 1,
    "cluster.reserved_port": 1024,
}

_ABOVE_ZERO = (
    "data.cache.timeout_s",
    "model.completion.width",
    "model.discriminator.width",
    "optimizers.completion.eps",
    "optimizers.discriminator.eps",
    "engine.timeout_s",
    "cluster.restart_window_s",
)

_BELOW_ONE = (
    "model.discriminator.slope",
    "losses.label_smoothing",
    "optimizers.completion.rho",
    "optimizers.discriminator.rho",
    "engine.ema",
)


def load(overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration from ``configs/`` and the overrides, and check it.

    ``overrides``: Hydra's words, for example ``experiment=faces64`` or ``global_batch=96``.
    Raises ``UserError`` for an unknown key, a wrong type, or a value that breaks a rule.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for word in overrides:
        _check_text(word)
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose("config", overrides=[_quoted(free_keys.freed(word)) for word in overrides])
        _check_keys(list(_flat(composed)))
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"{missing[0]} has no value: add {missing[0]}=... to the command")
        config = OmegaConf.to_object(composed)
    # ValueError: Hydra's for a group that is set to null.
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # As it was given, and not as ``freed`` made it.
        raise UserError(explain(error).replace("++cluster.", "cluster.", 1)) from error
    assert isinstance(config, Config)
    credentials.check(config.cluster)
    free_keys.check(config)
    check(config)
    for component in components(config):
        credentials.check_arguments(component.key, component.arguments)
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, without the credentials of its urls: it is for files and screens."""
    return OmegaConf.to_yaml(OmegaConf.create(without_secrets_in(OmegaConf.to_container(OmegaConf.structured(config)))))


def differences(one: Config, other: Config) -> list[str]:
    """The dotted keys in which two configurations differ, with both values.

    Credentials in urls make no difference: a configuration that was stored has none.
    """
    flat_one, flat_other = _flat(OmegaConf.structured(one)), _flat(OmegaConf.structured(other))
    # The order of phases is part of what a run is, unlike that of other keys.
    flat_one["phases"], flat_other["phases"] = list(one.phases), list(other.phases)
    keys = [*flat_one, *(key for key in flat_other if key not in flat_one)]
    return [
        f"{key}: {without_secrets_in(flat_one.get(key))} / {without_secrets_in(flat_other.get(key))}"
        for key in keys
        if _bare(flat_one.get(key)) != _bare(flat_other.get(key))
    ]


def keys(config: Config) -> list[str]:
    """Every dotted key of a configuration."""
    return list(flat(config))


def flat(config: Config) -> dict[str, Any]:
    """Every dotted key of a configuration with its value."""
    return _flat(OmegaConf.structured(config))


def config_folder() -> Path:
    """Where ``configs/`` lies: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def check(config: Config) -> None:
    """Raise ``UserError`` for the first value that breaks a rule by itself.

    Rules that need the corpus or the world are checked where those are known.
    """
    flat = _flat(OmegaConf.structured(config))
    if Path(config.name).name != config.name or config.name in ("", ".", ".."):
        raise UserError(f"name={config.name!r} is no name of a folder: give a plain one (runs=... says where it lies)")
    for key, folder in (("runs", config.runs), ("data.shards", config.data.shards)):
        if not folder:
            raise UserError(f"{key} is empty: give a folder")
    for key, choices in _CHOICES.items():
        if flat[key] not in choices:
            raise UserError(f"{key}={flat[key]} is not known: choose one of {', '.join(choices)}")
    for key, least in _AT_LEAST.items():
        if flat[key] < least:
            raise UserError(f"{key}={flat[key]} is too small: it must be at least {least}")
    _check_numbers(flat)
    _check_lists(config)
    if config.engine.zero_stage not in (0, 1):
        raise UserError(
            f"engine.zero_stage={config.engine.zero_stage} is refused: stages 0 and 1 are proven equal to "
            "plain torch for two engines, 2 and 3 are not (docs/architecture.md); choose 0 or 1"
        )
    if config.global_batch % config.data.order.lanes:
        raise UserError(
            f"data.order.lanes={config.data.order.lanes} does not divide global_batch={config.global_batch}: "
            "choose a divisor"
        )
    if config.monitor.evaluate_every and not config.data.val:
        raise UserError(
            f"monitor.evaluate_every={config.monitor.evaluate_every} needs held-out photos: set data.val to shards of "
            "them"
        )
    _check_contest(config)
    _check_phases(config)


def unknown_choice(config: Config, prefix: str) -> str | None:
    """The first ``key=value`` of the keys with ``prefix`` that is none of the key's choices; None: there is none."""
    values = flat(config)
    chosen = ((key, values[key], choices) for key, choices in _CHOICES.items() if key.startswith(prefix))
    return next((f"{key}={value}" for key, value, choices in chosen if value not in choices), None)


def check_world(config: Config, world_size: int, device: str) -> None:
    """Raise ``UserError`` where this world cannot run the configuration."""
    parts = world_size * config.engine.accumulation
    if config.global_batch % parts:
        raise UserError(
            f"global_batch={config.global_batch} is not a multiple of {parts} ({world_size} ranks x "
            f"engine.accumulation={config.engine.accumulation}): change global_batch or the number of ranks"
        )
    if config.global_batch // config.engine.accumulation < 2:
        raise UserError(
            f"global_batch={config.global_batch} leaves batch norm one photo at a time: use at least 2 a micro-batch"
        )
    if config.engine.precision == "fp16" and device == "cpu":
        raise UserError("engine.precision=fp16 needs a GPU: on a CPU choose bf16 or fp32")
    if config.engine.precision == "fp16" and config.engine.zero_stage:
        raise UserError(
            "engine.precision=fp16 with engine.zero_stage=1 is refused: DeepSpeed never lowers its loss scale there; "
            "choose engine.zero_stage=0, or bf16"
        )


def _check_numbers(flat: dict[str, Any]) -> None:
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} is no finite number: give one")
    for key in _ABOVE_ZERO:
        if flat[key] <= 0:
            raise UserError(f"{key}={flat[key]} is too small: it must be greater than 0")
    for key in _BELOW_ONE:
        if not 0 <= flat[key] < 1:
            raise UserError(f"{key}={flat[key]} must be at least 0 and less than 1")
    if 0 < flat["engine.spike_factor"] <= 1:
        raise UserError(
            f"engine.spike_factor={flat['engine.spike_factor']} would refuse ordinary gradients: "
            "it must be greater than 1, or 0 for no such watch"
        )
    if flat["seed"] >= 2**63:
        raise UserError(f"seed={flat['seed']} is too large: it must be less than 2**63")


def _check_contest(config: Config) -> None:
    """Settings of the losses and the discriminators that do not go together."""
    losses, judge = config.losses, config.model.discriminator
    for key, weight in (("losses.r1", losses.r1), ("losses.gradient_penalty", losses.gradient_penalty)):
        if weight and judge.normalization == "batch":
            raise UserError(
                f"{key}={weight} needs each photo judged by itself, but batch norm mixes the photos of a batch: "
                "set model.discriminator.normalization to spectral or none"
            )
    if judge.batch_norm == "together" and judge.normalization != "batch":
        raise UserError(
            f"model.discriminator.batch_norm=together, but model.discriminator.normalization={judge.normalization} "
            "has no batch norm: leave one of them out"
        )
    if losses.label_smoothing and losses.adversarial not in ("non_saturating", "saturating"):
        raise UserError(
            f"losses.label_smoothing={losses.label_smoothing} smooths the cross-entropy's target, and "
            f"losses.adversarial={losses.adversarial} has none: set it to 0"
        )
    if losses.adversarial == "wasserstein" and not losses.gradient_penalty:
        raise UserError(
            "losses.adversarial=wasserstein grows without bound by itself: set losses.gradient_penalty=10, say"
        )


def _check_lists(config: Config) -> None:
    data, optimizers = config.data, config.optimizers
    short = data.short_edge
    if len(short) != 2 or not data.size <= short[0] <= short[1]:
        raise UserError(
            f"data.short_edge={short} must be [least, greatest] with data.size={data.size} <= least <= greatest"
        )
    colour = data.mean_colour
    if colour is not None and not (len(colour) == 3 and all(0 <= value <= 1 for value in colour)):
        raise UserError(f"data.mean_colour={colour} must be [red, green, blue], each in 0 to 1, or null")
    for side, betas in (("completion", optimizers.completion.betas), ("discriminator", optimizers.discriminator.betas)):
        if not (len(betas) == 2 and all(0 <= value < 1 for value in betas)):
            raise UserError(f"optimizers.{side}.betas={betas} must be two numbers, each at least 0 and less than 1")


def _check_keys(composed: list[str]) -> None:
    """Refuse the keys that ``+key`` added and ``~key`` removed, which slip past Hydra's own check."""
    schema = list(_flat(OmegaConf.structured(Config())))
    for key in composed:
        in_phase = key.startswith("phases.") and key.split(".")[-1] in PhaseConfig.__dataclass_fields__
        if not in_phase and key not in schema:
            raise UserError(unknown_key(key))
    for key in schema:
        if key not in composed and key != "phases":
            raise UserError(removed_key(key))


def _check_phases(config: Config) -> None:
    if not config.phases:
        raise UserError("phases is empty: choose a recipe, such as recipe=modern")
    for name, phase in config.phases.items():
        for key, value in vars(phase).items():
            if not isinstance(value, str) and value < 0:
                raise UserError(f"phases.{name}.{key}={value} is too small: it must be at least 0")
        if phase.steps and not (phase.completion_every or phase.discriminator_every):
            raise UserError(
                f"phases.{name} updates no network: set completion_every or discriminator_every, or steps=0"
            )
        if phase.balance and not (phase.alpha and phase.reconstruction and phase.balance_steps):
            raise UserError(
                f"phases.{name}.balance={phase.balance} weighs the adversarial loss against the reconstruction: "
                "alpha, reconstruction and balance_steps must be above 0"
            )
        if phase.lr_schedule not in ("constant", "linear", "cosine"):
            raise UserError(
                f"phases.{name}.lr_schedule={phase.lr_schedule} is not known: choose one of constant, linear, cosine"
            )
    if not any(phase.steps for phase in config.phases.values()):
        raise UserError("every phase has steps=0: nothing to train")


def _check_text(word: str) -> None:
    """Raise ``UserError`` for an override whose bytes are no text in this locale, as no file of a run could hold it."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{printable(word)} is no text in this shell's encoding ({locale.getencoding()}): choose a locale of UTF-8 "
            "(export LC_ALL=C.UTF-8), or write it in plain letters"
        ) from None


def _quoted(word: str) -> str:
    """``key=value`` in the quotes that Hydra asks for: around a url, for its query's signs, and foreign letters."""
    match = re.fullmatch(r"([+\w.@]+=)([A-Za-z][A-Za-z0-9+.-]*://[^'\"\\]*)", word)
    if match is None and not word.isascii():
        match = re.fullmatch(r"([+\w.@]+=)([\w/.+-][\w/.+ -]*)", word)
    return f"{match[1]}'{match[2]}'" if match else word


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_bare(each) for each in value]
    return same_url(value) if isinstance(value, str) else value


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key in node:
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if f"{prefix}{key}" in free_keys.FREE:
            flat[f"{prefix}{key}"] = OmegaConf.to_container(value, resolve=True) if value is not None else {}
        elif OmegaConf.is_dict(value):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value or ()) if OmegaConf.is_list(value) else value
    return flat
