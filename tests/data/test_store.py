"""Samples read by offset, from a local folder, a HTTP server and an S3-compatible one."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs

from glci_dist.config import CacheConfig
from glci_dist.data.index import Shard, encode_table, load_index, save_index, table_name
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from tests.data.fault_server import FaultServer

SHARDS, SAMPLES = 5, 20


def photo(shard: int, number: int) -> bytes:
    draw = np.random.default_rng((shard, number))
    return draw.bytes(int(draw.integers(500, 2000)))


def key(shard: int, number: int) -> str:
    return f"{shard:03d}/{number:04d}"


def write_shards(folder: Path) -> None:
    """Shards by tarfile alone, so that what the store reads does not rest on what the builder writes."""
    folder.mkdir()
    entries = []
    for shard in range(SHARDS):
        path = folder / f"shard-{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(SAMPLES):
                member = tarfile.TarInfo(f"{key(shard, number)}.jpg")
                member.size = len(photo(shard, number))
                tar.addfile(member, io.BytesIO(photo(shard, number)))
        with tarfile.open(path) as tar:
            rows = [(member.offset_data, member.size, member.name.removesuffix(".jpg")) for member in tar]
        table = encode_table(rows)
        (folder / table_name(path.name)).write_bytes(table)
        content = path.read_bytes()
        entries.append(Shard(path.name, SAMPLES, len(content), sha256(content), sha256(table)))
    save_index(folder, entries)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), max_gib=1.0, retries=2, backoff_s=0.01, timeout_s=5.0)


def read_all(store: ShardStore) -> None:
    # Shards alternate, as lanes do.
    for number in range(SAMPLES):
        for shard in range(SHARDS):
            assert store.sample(shard, number) == (key(shard, number), photo(shard, number))


def open_files_in(folder: Path) -> int:
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.islink(link))


def test_every_sample_of_a_local_folder_is_read_with_its_key(shards: Path, config: CacheConfig) -> None:
    for root in (str(shards), f"file://{shards}"):
        read_all(ShardStore(load_index(root), config))
    assert not Path(config.dir).exists()


def test_few_shards_are_open_at_once_and_none_after_close(shards: Path, config: CacheConfig) -> None:
    store = ShardStore(load_index(str(shards)), config, open_shards=2)
    read_all(store)
    assert open_files_in(shards) == 2
    store.close()
    assert open_files_in(shards) == 0
    read_all(store)


def _read_in_process(store: ShardStore, results: Any) -> None:
    results.put(store.sample(3, 7))


def test_a_store_in_use_can_be_sent_to_another_process(shards: Path, config: CacheConfig) -> None:
    store = ShardStore(load_index(str(shards)), config, open_shards=2)
    read_all(store)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_read_in_process, args=(store, results))
    process.start()
    assert results.get(timeout=30) == (key(3, 7), photo(3, 7))
    process.join(10)
    copy = pickle.loads(pickle.dumps(store))
    read_all(copy)


def test_a_shard_of_another_size_than_its_index_is_named(shards: Path, config: CacheConfig) -> None:
    path = shards / "shard-000002.tar"
    os.truncate(path, path.stat().st_size - 512)
    store = ShardStore(load_index(str(shards)), config)
    store.sample(1, 0)
    with pytest.raises(UserError, match=r"shard-000002\.tar does not match its index.*glci shards verify"):
        store.sample(2, 0)


def test_a_shard_that_is_cut_while_it_is_open_is_named(shards: Path, config: CacheConfig) -> None:
    store = ShardStore(load_index(str(shards)), config)
    store.sample(2, 0)
    os.truncate(shards / "shard-000002.tar", 5000)
    with pytest.raises(UserError, match=r"shard-000002\.tar does not match its index.*sample 19"):
        store.sample(2, SAMPLES - 1)


def test_a_sample_table_of_another_shard_is_refused(shards: Path, config: CacheConfig) -> None:
    other = shards / table_name("shard-000001.tar")
    (shards / table_name("shard-000002.tar")).write_bytes(other.read_bytes())
    store = ShardStore(load_index(str(shards)), config)
    with pytest.raises(UserError, match=r"shard-000002\.tar does not match its index.*table"):
        store.sample(2, 0)


def test_a_sample_table_that_leads_outside_its_shard_is_refused(shards: Path, config: CacheConfig) -> None:
    table = encode_table([(2**63, 2**63 + 10, f"{n}") for n in range(SAMPLES)])
    (shards / table_name("shard-000000.tar")).write_bytes(table)
    document = json.loads((shards / "index.json").read_text())
    document["shards"][0]["table_sha256"] = sha256(table)
    (shards / "index.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="shard-000000"):
        ShardStore(load_index(str(shards)), config).sample(0, 0)


@pytest.mark.parametrize("missing", ["shard-000002.tar", table_name("shard-000002.tar")])
def test_a_missing_file_is_named(shards: Path, config: CacheConfig, missing: str) -> None:
    (shards / missing).unlink()
    with pytest.raises(UserError, match=missing):
        ShardStore(load_index(str(shards)), config).sample(2, 0)


def test_a_folder_on_a_http_server_reads_the_same_through_faults(shards: Path, config: CacheConfig) -> None:
    with FaultServer(shards) as server:
        server.faults["shard-000001.tar"].extend([("cut", 3000), ("status", 503)])
        server.faults[table_name("shard-000002.tar")].append(("cut", 100))
        read_all(ShardStore(load_index(server.url), config))
        received = sum(map(len, server.requests.values()))
        # Another store on this node asks the server for nothing but the index.
        read_all(ShardStore(load_index(server.url), config))
        assert sum(map(len, server.requests.values())) == received + 1
    assert received == 1 + 2 * SHARDS + 3


def test_a_remote_shard_stays_in_the_cache_while_it_is_open(shards: Path, config: CacheConfig) -> None:
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    config.max_gib = 2.5 * size / 2**30
    with FaultServer(shards) as server:
        store = ShardStore(load_index(server.url), config, open_shards=1)
        for shard in range(SHARDS):
            store.sample(shard, 0)
            kept = " ".join(os.listdir(config.dir))
            assert f"shard-{shard:06d}.tar-" in kept
        assert "shard-000000.tar-" not in kept


def test_a_remote_shard_that_differs_from_the_index_is_named(shards: Path, config: CacheConfig) -> None:
    index = load_index(str(shards))
    content = bytearray((shards / "shard-000002.tar").read_bytes())
    content[700] ^= 1
    (shards / "shard-000002.tar").write_bytes(content)
    with FaultServer(shards) as server:
        store = ShardStore(type(index)(server.url, index.shards), config)
        store.sample(1, 0)
        with pytest.raises(UserError, match=r"shard-000002\.tar does not match its index"):
            store.sample(2, 0)
        assert len(server.requests["shard-000002.tar"]) == 2


def test_a_store_of_a_shell_url_is_refused(shards: Path, config: CacheConfig) -> None:
    index = load_index(str(shards))
    with pytest.raises(UserError, match="shell command"):
        ShardStore(type(index)("pipe:cat /etc/passwd", index.shards), config)


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return pytest.importorskip("boto3").client("s3")


def test_a_bucket_on_an_s3_server_reads_the_same(shards: Path, config: CacheConfig, s3: Any) -> None:
    s3.create_bucket(Bucket="faces")
    for path in shards.iterdir():
        s3.upload_file(str(path), "faces", f"corpus/{path.name}")
    read_all(ShardStore(load_index("s3://faces/corpus"), config))

    s3.delete_object(Bucket="faces", Key="corpus/shard-000004.tar")
    read_all(ShardStore(load_index("s3://faces/corpus"), config))
    config.dir += "-empty"
    store = ShardStore(load_index("s3://faces/corpus"), config)
    store.sample(3, 0)
    with pytest.raises(UserError, match=r"s3://faces/corpus/shard-000004\.tar .*no such file"):
        store.sample(4, 0)


@pytest.fixture
def faulty_s3(shards: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """The shards as an s3 bucket of any name, on a server that can be told to misbehave."""
    with FaultServer(shards) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        # fsspec would hand out the file system of the other server.
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_answers_that_are_cut_or_refused_are_retried(config: CacheConfig, faulty_s3: FaultServer) -> None:
    name = "faces/shard-000001.tar"
    faulty_s3.faults[name].extend([("cut", 3000), ("status", 503)])
    assert ShardStore(load_index("s3://faces"), config).sample(1, 0) == (key(1, 0), photo(1, 0))
    assert len(faulty_s3.requests[name]) == 3


def test_a_download_from_s3_goes_on_where_it_ended(config: CacheConfig, faulty_s3: FaultServer) -> None:
    store = ShardStore(load_index("s3://faces"), config)
    store.sample(0, 0)
    store.close()
    (entry,) = Path(config.dir).glob("*000000.tar-*")
    part = entry.rename(f"{entry}.part")
    os.truncate(part, 3000)
    assert store.sample(0, 5) == (key(0, 5), photo(0, 5))
    assert entry.exists()
    assert not part.exists()
    starts = [str(wanted).partition("-")[0] for wanted in faulty_s3.requests["faces/shard-000000.tar"]]
    assert starts == ["bytes=0", "bytes=3000"]


def test_an_s3_server_that_is_away_is_named_after_the_last_retry(config: CacheConfig, faulty_s3: FaultServer) -> None:
    store = ShardStore(load_index("s3://faces"), config)
    faulty_s3.stop()
    with pytest.raises(UserError, match=r"s3://faces/shard-000000.* after 2 retries"):
        store.sample(0, 0)


def test_s3_without_s3fs_says_what_to_install(config: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"pip install 'glci-dist\[s3\]'"):
        load_index("s3://faces/corpus")
