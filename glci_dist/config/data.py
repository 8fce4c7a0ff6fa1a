"""Where photos come from, what is done to each, and the holes in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from glci_dist.config.fields import Rule, above, at_least, component, one_of, ruled


@dataclass
class OrderConfig:
    """How the corpus is shuffled (docs/architecture.md, "Order at scale")."""

    lanes: int = at_least(1, default=4)
    """Parts of an epoch that are read side by side; divides ``global_batch``."""
    block_shards: int = at_least(1, default=4)
    """Consecutive shards (of the permuted shard list) whose samples are permuted together."""


@dataclass
class CacheConfig:
    """The node's cache of remote shards."""

    dir: str = "~/.cache/glci-dist/shards"
    """Folder on the node's own disk, shared by its processes and by later runs. One that cannot be written must hold
    all the shards."""
    max_gib: float = at_least(0, default=50.0)
    """Least recently used shards are removed beyond this many GiB."""
    retries: int = at_least(0, default=5)
    """Times that a failed transfer, of an index or of a shard, is tried again before the command ends; an answer that
    is final (no such file, no right, an untrusted certificate, a redirection to nowhere) ends it at once."""
    backoff_s: float = at_least(0, default=0.5)
    """Wait before the first retry, seconds; doubled for each further one."""
    timeout_s: float = above(0, default=60.0)
    """A transfer that brings no byte for this long is retried, seconds."""


@dataclass
class DataConfig:
    """The stream: where photos come from, and what is done to each."""

    shards: str = MISSING
    """Folder or url (http, https, s3) that holds ``index.json`` and the shards."""
    val: str | None = None
    """Shards whose faces fill the picture grids; null: the training shards'."""
    size: int = at_least(4, default=64)
    """Side of the square crop, px; a multiple of 4."""
    short_edge: list[int] = field(default_factory=lambda: [64, 71])
    """The photo's short edge is scaled to a length drawn from this range, px."""
    flip: bool = True
    """Mirror half of the photos."""
    order: OrderConfig = field(default_factory=OrderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    workers: int = at_least(0, default=1)
    """Loader processes of each rank; 0 decodes in the training process."""
    prefetch: int = at_least(1, default=4)
    """Batches that each loader process prepares ahead."""
    tolerance: float = at_least(0, default=0.01)
    """Share of samples that may fail to decode before the run ends."""
    mean_colour: list[float] | None = ruled(
        Rule(
            lambda colour: colour is None or (len(colour) == 3 and all(0 <= value <= 1 for value in colour)),
            "must be [red, green, blue], each in 0 to 1, or null",
        ),
        default=None,
    )
    """Fills the hole: red, green, blue in [0, 1]; null: measured on photos of the corpus."""


@dataclass
class HolesConfig:
    """The region to complete, and the local discriminator's patch."""

    kind: str = one_of("box", "boxes", "freeform", "centre")
    """``box``, ``boxes`` (several), ``freeform`` (strokes) or ``centre``."""
    min_side: int = 19
    """Least side of a rectangle, px."""
    max_side: int = 38
    """Greatest side of a rectangle, px; of the bounding box of all rectangles or strokes."""
    max_count: int = 3
    """Greatest number of rectangles (``boxes``) or strokes (``freeform``) in one hole."""
    stroke_radius: list[float] = field(default_factory=lambda: [1.5, 4.0])
    """Range of a stroke's half width, px (``freeform``)."""
    patch: int = 40
    """Side of the local discriminator's square patch, px."""
    custom: dict[str, Any] = component("size", "patch")
    """A kind of your own in place of ``kind``: ``_target_``, a dotted path to a class, and its arguments
    (docs/extending.md)."""
