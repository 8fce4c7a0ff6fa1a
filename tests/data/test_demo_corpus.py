"""`glci demo-corpus` renders two different parts, and an interrupted one is made anew."""

from __future__ import annotations

from pathlib import Path

from glci_dist.data.demo_corpus import build_demo_corpus
from glci_dist.data.index import load_index
from glci_dist.data.verify import check_shards


def test_an_interrupted_corpus_is_completed_and_a_finished_part_stays(tmp_path: Path) -> None:
    def build() -> None:
        build_demo_corpus(tmp_path, train=6, val=3, size=32, processes=1)

    build()
    finished = {part: load_index(str(tmp_path / part)).digest for part in ("train", "val")}
    kept = (tmp_path / "train" / "index.json").stat().st_mtime_ns
    (tmp_path / "val" / "index.json").unlink()
    (tmp_path / "val-photos").mkdir()
    (tmp_path / "val-photos" / "face-000000.jpg").write_bytes(b"half a photo")

    build()

    assert {part: load_index(str(tmp_path / part)).digest for part in ("train", "val")} == finished
    assert finished["train"] != finished["val"]
    assert (tmp_path / "train" / "index.json").stat().st_mtime_ns == kept
    check_shards(load_index(str(tmp_path / "val")))
    assert not (tmp_path / "val-photos").exists()
