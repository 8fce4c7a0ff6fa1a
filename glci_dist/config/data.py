"""The data: shards, preprocessing, order, cache, holes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from glci_dist.config.fields import Rule, above, at_least, component, one_of, ruled


@dataclass
class OrderConfig:
    """How the corpus is shuffled (docs/architecture.md, "Order at scale")."""

    lanes: int = at_least(1, default=4)
    """Parts of an epoch that are read in parallel; must divide each batch."""
    block_shards: int = at_least(1, default=4)
    """Shuffle block: consecutive shards (of the shuffled shard list) whose samples are shuffled together."""


@dataclass
class CacheConfig:
    """The node's cache of remote shards."""

    dir: str = "~/.cache/glci-dist/shards"
    """Folder on the node's local disk, shared by its processes and by later runs. A read-only one must already hold
    all shards."""
    max_gib: float = at_least(0, default=50.0)
    """Size limit, GiB; the least recently used shards are removed first."""
    retries: int = at_least(0, default=5)
    """Retries of a failed transfer (of an index or a shard) before the command ends. Final answers are not retried: a
    missing file, no permission, an untrusted certificate, a redirection to nowhere."""
    backoff_s: float = at_least(0, default=0.5)
    """Wait before the first retry, seconds; doubled for each further retry."""
    timeout_s: float = above(0, default=60.0)
    """A transfer that receives no byte for this long is retried, seconds."""


@dataclass
class DataConfig:
    """Where photos come from, and how they are preprocessed."""

    shards: str = MISSING
    """Folder or url (http, https, s3) with ``index.json`` and the shards."""
    val: str | None = None
    """Held-out shards: for evaluations during training, and for the picture grids; null: the grids show training
    photos."""
    size: int = at_least(4, default=64)
    """Side of the square crop, px; a multiple of 4."""
    short_edge: list[int] = field(default_factory=lambda: [64, 71])
    """Each photo's short edge is scaled to a random length in this range, px."""
    flip: bool = True
    """Mirror photos horizontally with probability 1/2."""
    order: OrderConfig = field(default_factory=OrderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    workers: int = at_least(0, default=1)
    """Loader workers per rank; 0: the training process decodes."""
    prefetch: int = at_least(1, default=4)
    """Batches that each loader worker prepares in advance."""
    tolerance: float = at_least(0, default=0.01)
    """The run ends if a larger share of the samples fails to decode."""
    mean_colour: list[float] | None = ruled(
        Rule(
            lambda colour: colour is None or (len(colour) == 3 and all(0 <= value <= 1 for value in colour)),
            "must be [red, green, blue], each in 0 to 1, or null",
        ),
        default=None,
    )
    """Fill colour of holes in the network's input: red, green, blue in [0, 1]; null: mean of photos of the corpus."""


@dataclass
class HolesConfig:
    """The holes, and the local discriminator's patch."""

    kind: str = one_of("box", "boxes", "freeform", "centre")
    """``box`` (one rectangle), ``boxes`` (several), ``freeform`` (strokes) or ``centre`` (a centred square)."""
    min_side: int = 19
    """Minimum side of a rectangle, px."""
    max_side: int = 38
    """Maximum side of a rectangle, px, and of the bounding box of all rectangles or strokes of a hole."""
    max_count: int = 3
    """Maximum number of rectangles (``boxes``) or strokes (``freeform``) in a hole."""
    stroke_radius: list[float] = field(default_factory=lambda: [1.5, 4.0])
    """Range of a stroke's half width, px (``freeform``)."""
    patch: int = 40
    """Side of the local discriminator's square patch, px."""
    custom: dict[str, Any] = component("size", "patch")
    """Your own kind of hole instead of ``kind``: ``_target_``, a dotted path to a class, and its arguments
    (docs/extending.md)."""
