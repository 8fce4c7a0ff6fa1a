"""The node's cache of remote shards, against real servers on loopback."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glci_dist.config import CacheConfig
from glci_dist.data.cache import ShardCache
from glci_dist.data.location import check_location, join
from glci_dist.data.remote import read_remote
from glci_dist.errors import UserError
from tests.data.fault_server import FaultServer

CONTENT = np.random.default_rng(0).bytes(300_000)
NAME = "shard-000000.tar"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    with FaultServer(folder) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), max_gib=1.0, retries=3, backoff_s=0.01, timeout_s=5.0)


def fetch(cache: ShardCache, server: FaultServer, name: str = NAME, content: bytes = CONTENT) -> FileIO:
    return cache.fetch(f"{server.url}/{name}", bytes=len(content), sha256=sha256(content))


def files_in(config: CacheConfig) -> list[str]:
    return sorted(os.listdir(config.dir))


def serve_more(server: FaultServer, count: int, size: int = 100_000) -> dict[str, bytes]:
    shards = {f"shard-{n:06d}.tar": np.random.default_rng(n).bytes(size) for n in range(1, count + 1)}
    for name, content in shards.items():
        (server.folder / name).write_bytes(content)
    return shards


def test_a_shard_is_downloaded_once_and_read_from_the_cache_after(server: FaultServer, config: CacheConfig) -> None:
    for cache in (ShardCache(config), pickle.loads(pickle.dumps(ShardCache(config)))):
        with fetch(cache, server) as file:
            assert file.readall() == CONTENT
    assert server.requests[NAME] == [None]
    (only,) = files_in(config)
    assert NAME in only


def test_a_cut_connection_is_resumed_where_it_was_cut(server: FaultServer, config: CacheConfig) -> None:
    content = CONTENT * 40
    (server.folder / NAME).write_bytes(content)
    server.faults[NAME].extend([("cut", 5_000_000), ("cut", 5_000_000)])
    with fetch(ShardCache(config), server, NAME, content) as file:
        assert file.readall() == content
    first, second, third = server.requests[NAME]
    assert first is None
    assert second is not None
    assert third is not None
    # Up to 1 MB before a cut is lost with the connection, in the client's buffers.
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in (second, third)]
    assert 1_000_000 < starts[0] <= 5_000_000
    assert starts[0] + 1_000_000 < starts[1] <= starts[0] + 5_000_000


def test_a_server_that_ignores_ranges_is_read_from_the_start_again(server: FaultServer, config: CacheConfig) -> None:
    content = CONTENT * 20
    (server.folder / NAME).write_bytes(content)
    server.faults[NAME].extend([("cut", 5_000_000), ("whole",)])
    with fetch(ShardCache(config), server, NAME, content) as file:
        assert file.readall() == content
    first, second = server.requests[NAME]
    assert first is None
    assert second is not None


@pytest.mark.parametrize("fault", [("status", 503), ("status", 429), ("cut", 0)])
def test_a_passing_fault_is_retried(server: FaultServer, config: CacheConfig, fault: tuple) -> None:
    server.faults[NAME].extend([fault, fault])
    with fetch(ShardCache(config), server) as file:
        assert file.readall() == CONTENT
    assert len(server.requests[NAME]) == 3


def test_a_transfer_that_brings_nothing_more_is_retried(server: FaultServer, config: CacheConfig) -> None:
    config.timeout_s = 0.5
    server.faults[NAME].append(("stall", 1000))
    with fetch(ShardCache(config), server) as file:
        assert file.readall() == CONTENT
    assert len(server.requests[NAME]) >= 2


def test_retries_wait_longer_each_time(
    server: FaultServer, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.faults[NAME].extend([("status", 503)] * 3)
    fetch(ShardCache(config), server).close()
    assert waits == [0.01, 0.02, 0.04]


def test_after_the_last_retry_one_line_names_the_url_and_the_reason(server: FaultServer, config: CacheConfig) -> None:
    server.faults[NAME].extend([("status", 503)] * 9)
    with pytest.raises(UserError, match=rf"{server.url}/{NAME} .*3 retries.*503") as raised:
        fetch(ShardCache(config), server)
    assert "\n" not in str(raised.value)
    assert len(server.requests[NAME]) == 4


@pytest.mark.parametrize("status", [403, 404])
def test_a_final_answer_is_not_retried(server: FaultServer, config: CacheConfig, status: int) -> None:
    server.faults[NAME].append(("status", status))
    with pytest.raises(UserError, match=NAME):
        fetch(ShardCache(config), server)
    assert len(server.requests[NAME]) == 1


def test_wrong_bytes_are_fetched_once_more(server: FaultServer, config: CacheConfig) -> None:
    server.faults[NAME].append(("wrong", len(CONTENT)))
    with fetch(ShardCache(config), server) as file:
        assert file.readall() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_shard_that_differs_from_its_index_is_named_and_not_kept(
    server: FaultServer, config: CacheConfig, size: int
) -> None:
    server.faults[NAME].extend([("wrong", size)] * 2)
    with pytest.raises(UserError, match=rf"{NAME} does not match its index"):
        fetch(ShardCache(config), server)
    assert len(server.requests[NAME]) == 2
    assert files_in(config) == []


def test_a_small_file_of_unknown_size_is_checked_too(server: FaultServer, config: CacheConfig) -> None:
    url, cache = f"{server.url}/{NAME}", ShardCache(config)
    server.faults[NAME].append(("cut", 1000))
    with cache.fetch(url, bytes=None, sha256=sha256(CONTENT)) as file:
        assert file.readall() == CONTENT
    with pytest.raises(UserError, match="does not match its index"):
        cache.fetch(url, bytes=None, sha256=sha256(b"other"))


def test_an_entry_that_was_damaged_is_fetched_again(server: FaultServer, config: CacheConfig) -> None:
    cache = ShardCache(config)
    fetch(cache, server).close()
    os.truncate(Path(config.dir, *files_in(config)), 10)
    with fetch(cache, server) as file:
        assert file.readall() == CONTENT


def _fetch_in_process(config: CacheConfig, url: str, start: Any, results: Any) -> None:
    start.wait()
    with ShardCache(config).fetch(url, bytes=len(CONTENT), sha256=sha256(CONTENT)) as file:
        results.put(sha256(file.readall()))


def test_processes_that_want_one_shard_at_once_download_it_once(server: FaultServer, config: CacheConfig) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    server.faults[NAME].append(("hold", 1000))
    arguments = (config, f"{server.url}/{NAME}", start, results)
    processes = [context.Process(target=_fetch_in_process, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    # The first one is in the middle of its download; the others get half a second to break in.
    assert server.stalled.wait(30)
    time.sleep(0.5)
    server.release.set()
    assert [results.get(timeout=30) for _ in processes] == [sha256(CONTENT)] * 4
    for process in processes:
        process.join(10)
    assert len(server.requests[NAME]) == 1


@pytest.mark.parametrize("left", ["what was received", "garbage", "too much"])
def test_a_killed_download_neither_blocks_nor_poisons_the_next(
    server: FaultServer, config: CacheConfig, left: str
) -> None:
    server.faults[NAME].append(("stall", 200_000))
    code = (
        "from glci_dist.config import CacheConfig; from glci_dist.data.cache import ShardCache\n"
        f"ShardCache(CacheConfig(dir={config.dir!r})).fetch("
        f"'{server.url}/{NAME}', bytes={len(CONTENT)}, sha256='{sha256(CONTENT)}')"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert server.stalled.wait(30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    (part,) = Path(config.dir).iterdir()
    assert part.suffix == ".part"
    if left != "what was received":
        part.write_bytes(b"x" * (1000 if left == "garbage" else len(CONTENT) + 1))
    with fetch(ShardCache(config), server) as file:
        assert file.readall() == CONTENT
    assert len(files_in(config)) == 1
    assert not part.exists()


def bytes_in(config: CacheConfig) -> int:
    return sum(path.stat().st_size for path in Path(config.dir).iterdir())


def test_the_least_recently_used_shards_make_room(server: FaultServer, config: CacheConfig) -> None:
    shards = serve_more(server, 5)
    config.max_gib = 350_000 / 2**30
    cache = ShardCache(config)
    for name in (*list(shards)[:3], "shard-000001.tar", "shard-000004.tar", "shard-000005.tar"):
        fetch(cache, server, name, shards[name]).close()
        assert bytes_in(config) <= 350_000
    kept = [name for name in shards if any(name in file for file in files_in(config))]
    assert kept == ["shard-000001.tar", "shard-000004.tar", "shard-000005.tar"]


def _hold(config: CacheConfig, url: str, content: bytes, fetched: Any, done: Any) -> None:
    with ShardCache(config).fetch(url, bytes=len(content), sha256=sha256(content)):
        fetched.set()
        done.wait(30)


def test_a_shard_in_use_by_another_process_is_never_removed(
    server: FaultServer, config: CacheConfig, caplog: pytest.LogCaptureFixture
) -> None:
    shards = serve_more(server, 5)
    config.max_gib = 250_000 / 2**30
    context = multiprocessing.get_context("spawn")
    fetched, done = context.Event(), context.Event()
    used = "shard-000001.tar"
    holder = context.Process(target=_hold, args=(config, f"{server.url}/{used}", shards[used], fetched, done))
    holder.start()
    assert fetched.wait(30)
    cache = ShardCache(config)
    for name in list(shards)[1:]:
        fetch(cache, server, name, shards[name]).close()
        assert any(used in file for file in files_in(config))
        assert bytes_in(config) <= 250_000
    own = [fetch(cache, server, name, shards[name]) for name in ("shard-000004.tar", "shard-000005.tar")]
    assert len(files_in(config)) == 3
    assert "none can be removed" in caplog.text
    done.set()
    holder.join(10)
    for file in own:
        file.close()
    fetch(cache, server, "shard-000002.tar", shards["shard-000002.tar"]).close()
    assert not any(used in file for file in files_in(config))
    assert bytes_in(config) <= 250_000


def test_downloads_that_end_together_keep_the_bound(server: FaultServer, config: CacheConfig) -> None:
    shards = serve_more(server, 2)
    first, second = shards
    config.max_gib = 150_000 / 2**30
    server.faults[first].append(("hold", 1000))
    slow = threading.Thread(target=lambda: fetch(ShardCache(config), server, first, shards[first]).close(), daemon=True)
    slow.start()
    assert server.stalled.wait(30)
    fetch(ShardCache(config), server, second, shards[second]).close()
    server.release.set()
    slow.join(30)
    assert bytes_in(config) == len(shards[first])


def test_an_unfinished_download_goes_before_any_shard(server: FaultServer, config: CacheConfig) -> None:
    shards = serve_more(server, 2)
    config.max_gib, config.retries = 450_000 / 2**30, 0
    cache = ShardCache(config)
    fetch(cache, server, "shard-000001.tar", shards["shard-000001.tar"]).close()
    server.faults[NAME].append(("cut", 200_000))
    with pytest.raises(UserError, match=NAME):
        fetch(cache, server)
    (part,) = Path(config.dir).glob("*.part")
    os.truncate(part, 300_000)
    fetch(cache, server, "shard-000002.tar", shards["shard-000002.tar"]).close()
    assert not part.exists()
    assert any("shard-000001.tar" in name for name in files_in(config))


def test_files_that_are_not_the_caches_are_never_removed(server: FaultServer, config: CacheConfig) -> None:
    Path(config.dir).mkdir()
    thesis = Path(config.dir, "thesis.tex")
    thesis.write_bytes(b"x" * 400_000)
    shards = serve_more(server, 3)
    config.max_gib = 150_000 / 2**30
    for name, content in shards.items():
        fetch(ShardCache(config), server, name, content).close()
    assert thesis.exists()
    assert len(files_in(config)) == 2


def test_a_shard_larger_than_the_cache_is_refused(server: FaultServer, config: CacheConfig) -> None:
    config.max_gib = 200_000 / 2**30
    with pytest.raises(UserError, match=r"max_gib"):
        fetch(ShardCache(config), server)
    assert server.requests[NAME] == []


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(server: FaultServer, config: CacheConfig) -> None:
    # A limit on the size of a file stands in for a full disk: both end the same write.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=rf"{config.dir}.*make room"):
            fetch(ShardCache(config), server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(config) == []
    assert len(server.requests[NAME]) == 1


def test_a_cache_folder_that_cannot_be_made_is_named(server: FaultServer, config: CacheConfig) -> None:
    Path(config.dir).write_text("a file stands here")
    with pytest.raises(UserError, match=config.dir):
        fetch(ShardCache(config), server)


def test_an_index_is_read_with_the_same_retries(server: FaultServer, config: CacheConfig) -> None:
    server.faults[NAME].extend([("status", 503), ("cut", 1000)])
    assert read_remote(f"{server.url}/{NAME}", config) == CONTENT
    with pytest.raises(UserError, match=r"index\.json .*no such file"):
        read_remote(f"{server.url}/index.json", config)


@pytest.mark.parametrize(
    "location",
    ["pipe:touch /tmp/x", " PIPE:cat", "ftp://host/x", "simplecache::http://host/x", "http://a/b::file:///c"],
)
def test_locations_that_may_run_commands_are_refused(location: str, config: CacheConfig) -> None:
    for refuse in (
        check_location,
        lambda url: ShardCache(config).fetch(url, bytes=1, sha256=""),
        lambda url: read_remote(url, config),
    ):
        with pytest.raises(UserError, match="refused"):
            refuse(location)


def test_folders_and_plain_urls_are_accepted() -> None:
    for location in ("shards", "/data/a b", "./a:b", "file:///data", "HTTPS://host/x", "s3://bucket"):
        check_location(location)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ""])
def test_an_index_cannot_lead_outside_its_folder(name: str) -> None:
    with pytest.raises(UserError, match="index"):
        join("/data/shards", name)
