"""Remote shards as users meet them: passwords, signed urls, proxies, login pages, damaged copies; on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from glci_dist import compose, stored_config
from glci_dist.config import CacheConfig
from glci_dist.data.cache import ShardCache
from glci_dist.data.decode import decode
from glci_dist.data.index import load_index
from glci_dist.data.location import check_location, join
from glci_dist.data.pixels import DecodeError
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.runs.folder import RunFolder
from tests.data.fault_server import FaultServer
from tests.data.shards_help import glci
from tests.small_run import small

SECRETS = ("hunter2", "S1G+N")
SIGNED = "sv=1&sig=S1G%2BN/%3D/"


@pytest.fixture
def server(small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").touch(0o600)
    with FaultServer(shutil.copytree(small_shards, tmp_path / "served")) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), retries=2, backoff_s=0.01, timeout_s=5.0)


def with_password(server: FaultServer, password: str = "hunter2") -> str:
    server.password = f"me:{password}"
    return server.url.replace("://", f"://me:{password}@")


def test_a_password_opens_the_shards_and_stands_in_no_file_and_no_message(
    server: FaultServer, cache: CacheConfig, caplog: pytest.LogCaptureFixture
) -> None:
    url = with_password(server)
    server.faults["index.json"].append(("status", 503))
    store = ShardStore(load_index(url, cache), cache)
    store.sample(0, 0)
    server.faults["shard-000001.tar"].append(("status", 404))
    with pytest.raises(UserError) as raised:
        store.sample(1, 0)
    written = [*os.listdir(cache.dir), caplog.text, str(raised.value)]
    assert "retry 1" in caplog.text
    assert not any("hunter2" in text for text in written)


@pytest.mark.parametrize("query", ["", "?sig=hunter2&se=2030"])
def test_a_run_keeps_no_credentials_and_goes_on_with_others(tmp_path: Path, query: str) -> None:
    def config(password: str, signature: str) -> compose.Config:
        root = f"http://me:{password}@host/faces{query.replace('hunter2', signature)}"
        return compose.load([f"data.shards={root}", f"data.val={root}", f"runs={tmp_path}", "name=run"])

    run = RunFolder(tmp_path / "run")
    run.begin_attempt(config("hunter2", "hunter2"), "corpus", ranks=1)
    for path in (path for path in run.path.rglob("*") if path.is_file()):
        assert b"hunter2" not in path.read_bytes(), path
    assert run.check(config("another", "another"), "corpus") == []
    other = compose.load(["data.shards=http://me:hunter2@host/others", f"runs={tmp_path}", "name=run"])
    with pytest.raises(UserError, match=r"data\.shards: .*/faces.*host/others") as raised:
        run.check(other, "corpus")
    assert "hunter2" not in str(raised.value)


def test_a_stored_url_that_lost_its_credentials_says_so(tmp_path: Path) -> None:
    for url in ("http://me:hunter2@host/faces", "https://host/faces?sig=hunter2"):
        config = stored_config.parse(compose.to_yaml(compose.load([f"data.shards={url}"])), tmp_path).config
        with pytest.raises(UserError, match="never stored"):
            load_index(config.data.shards)


def test_what_cannot_be_done_is_refused_before_a_server_is_asked(
    server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert glci("shards", "verify", server.url) == 2
    assert (
        capsys.readouterr().err
        == f"glci: error: {server.url} is remote; give a local path here, and copy from or to there\n"
    )
    (tmp_path / "theirs.png").write_bytes(b"a photo")
    for words in (("--out", tmp_path / "theirs.png"), ("--out", tmp_path / "sheet.foo"), ("--photos", 0)):
        assert glci("shards", "show", server.url, *words) == 2
    assert server.paths == []


def test_what_is_printed_shows_no_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    assert glci("config", "data.shards=http://me:hunter2@host/faces?sig=hunter2") == 0
    assert glci("config", "data.shards=http://me:hunter2@host/faces", "no.key=1") == 2
    assert glci("shards", "show", "ftp://me:hunter2@host/faces") == 2
    assert glci("shards", "show", "s3://key:hunter2@bucket/faces") == 2
    assert glci("shards", "show", "http://me:hunter2/x@host/faces") == 2
    assert glci("shards", "verify", "http://me:hunter2@127.0.0.1:1/faces#1") == 2
    assert glci("submit", "data.shards=http://me:hunter2@host/faces", "cluster.executor=local") == 2
    printed = capsys.readouterr()
    assert "hunter2" not in printed.out + printed.err
    assert "credentials in urls are not shown" in printed.err
    assert "netrc" in printed.err.splitlines()[-1]
    assert "oc.env" in printed.err.splitlines()[-1]


def test_netrc_gives_user_and_password_and_their_lack_is_told(
    server: FaultServer, cache: CacheConfig, tmp_path: Path
) -> None:
    with_password(server)
    with pytest.raises(UserError, match=r"401.*~/\.netrc"):
        load_index(server.url, cache)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    ShardStore(load_index(server.url, cache), cache).sample(0, 0)


def test_a_query_goes_behind_the_path_of_each_file_as_it_was_given(server: FaultServer, cache: CacheConfig) -> None:
    for root in (f"{server.url}/?{SIGNED}", f"{server.url}?{SIGNED}"):
        ShardStore(load_index(root, cache), cache).sample(0, 0)
    asked = ["/index.json", "/shard-000000.tar.samples.npy", "/shard-000000.tar", "/index.json"]
    assert server.paths == [f"{path}?{SIGNED}" for path in asked]
    assert not any("S1G" in name for name in os.listdir(cache.dir))


def test_a_signature_that_covers_one_file_is_told(server: FaultServer, cache: CacheConfig) -> None:
    server.faults["index.json"].append(("status", 403))
    with pytest.raises(UserError, match=r"sig=\*\*\*.*403.*bound to one file"):
        load_index(f"{server.url}?{SIGNED}", cache)


def test_names_are_joined_as_servers_and_buckets_spell_them() -> None:
    assert join("http://h/a%20b/", "c d.tar") == "http://h/a%20b/c%20d.tar"
    assert join("http://h", "c.tar") == "http://h/c.tar"
    assert join("s3://b/f", "c d.tar") == "s3://b/f/c d.tar"
    check_location("http://[::1]:8000/faces")
    with pytest.raises(UserError, match="%23"):
        check_location("http://h/faces#1")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:hun/ter2@bucket/x", r"'s3://\*\*\*@bucket/x'.*AWS_ACCESS_KEY_ID.*~/\.aws"),
        ("s3://hunter2@bucket/x", r"no credentials"),
        ("s3://bucket/x?token=hunter2", r"no query"),
        ("s3://bucket/x#token=hunter2", r"no query"),
        ("http://h/x#hunter2", r"'http://h/x#\*\*\*'.*write it as %23"),
        ("http://u:p#hunter2@h/x", r"%23"),
        ("http://hunter2:12/34@h/x", r"'http://\*\*\*@h/x'.*/ as %2F"),
        ("http://u:hunter2/12@h/x", r"/ is %2F"),
        ("http://u:hunter2?12@h/x", r"\? is %3F"),
        ("http://u:12?hunter2@h/x", r"\? as %3F"),
        ("https://u:p@h/x?user=hunter2@h", r"write @ as %40"),
        ("https://h/x?sig=a hunter2", r"%20"),
        ("http:/u:hunter2@h/x", r"not a whole url"),
    ],
)
def test_a_url_whose_credentials_would_go_astray_is_refused(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        load_index(url)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_urls_as_they_should_be_are_taken() -> None:
    for url in (
        "http://me:p%2Fw%40x@h:80/faces%40v2?user=a%40b",
        "http://me:my password@h/my faces",
        "http://me@corp.com:pw@[::1]:80/x",
        "https://h/faces@v2?GoogleAccessId=a@b.com&t=12:30",
        "s3://bucket/a#b/what?",
    ):
        check_location(url)


def test_an_index_in_the_place_of_its_folder_is_named(small_shards: Path) -> None:
    for place, folder in (
        ("https://me:hunter2@h/faces/index.json?sig=hunter2", "https://***@h/faces?sig=***"),
        ("s3://bucket/faces/index.json", "s3://bucket/faces"),
        (f"{small_shards}/index.json", str(small_shards)),
        (f"file://{small_shards}/index.json", f"file://{small_shards}"),
    ):
        with pytest.raises(UserError, match="is an index: give its folder") as raised:
            load_index(place)
        assert str(raised.value).endswith(f"give its folder, {folder!r}")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_used_but_for_no_proxy(
    server: FaultServer, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, server.url)
    ShardStore(load_index("http://shards.invalid/faces", cache), cache).sample(0, 0)
    assert server.paths[0] == "http://shards.invalid/faces/index.json"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    load_index(server.url, cache)
    assert server.paths[-1] == "/index.json"


def test_a_proxy_of_another_kind_is_refused(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://me:hunter2@proxy:1080")
    with pytest.raises(UserError, match=r"socks5://\*\*\*@proxy:1080.*cannot be used"):
        load_index(server.url)


@pytest.mark.parametrize("retries", [0, 1])
def test_retries_count_for_the_index_too(server: FaultServer, cache: CacheConfig, retries: int) -> None:
    cache.retries = retries
    server.faults["index.json"].extend([("status", 503)] * 9)
    with pytest.raises(UserError, match=f"after {retries} retries"):
        load_index(server.url, cache)
    assert len(server.requests["index.json"]) == 1 + retries


def test_a_server_that_asks_for_a_pause_gets_it(
    server: FaultServer, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.faults["index.json"].append(("status", 429, {"Retry-After": "7"}))
    load_index(server.url, cache)
    assert waits == [7.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<!DOCTYPE html><html><title>Sign in</title>", r"web page titled 'Sign in' \(a login page\?\)"),
        (b"<html><title>Index of /faces</title>", "a listing of files"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML answer .AccessDenied"),
        (b'{"error": "token expired"}', "token expired"),
        (b'{"images": []}', "another kind .its keys: images"),
        (b"[]", "another kind"),
        (b"", "an empty answer"),
        (b"\x1f\x8b\x08\0", "a gzip file"),
        (b"Please log in", "text that begins with 'Please log in'"),
    ],
)
def test_an_answer_that_is_no_index_is_named(server: FaultServer, cache: CacheConfig, answer: bytes, said: str) -> None:
    server.faults["index.json"].append(("answer", answer))
    with pytest.raises(UserError, match=said) as raised:
        load_index(server.url, cache)
    assert "anew" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_login_page_in_place_of_a_shard_is_named(server: FaultServer, cache: CacheConfig) -> None:
    server.faults["shard-000000.tar"].extend([("answer", b"<html><title>Sign in</title>")] * 2)
    with pytest.raises(UserError, match=r"shard-000000\.tar .*web page titled 'Sign in'"):
        ShardStore(load_index(server.url, cache), cache).sample(0, 0)


whole = partial(decode, short_edge=None)


def damage(cache: CacheConfig, *, as_if_untouched: bool) -> None:
    (entry,) = Path(cache.dir).glob("*000000.tar-*")
    before = entry.stat()
    with entry.open("r+b") as file:
        file.write(b"\0" * before.st_size)
    if as_if_untouched:
        os.utime(entry, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_damaged_copy_of_the_right_size_is_fetched_anew(
    server: FaultServer, cache: CacheConfig, caplog: pytest.LogCaptureFixture
) -> None:
    index = load_index(server.url, cache)
    first = ShardStore(index, cache).sample(0, 0)
    damage(cache, as_if_untouched=False)
    assert ShardStore(index, cache).sample(0, 0) == first
    assert "damaged in the cache" in caplog.text
    # Damage that leaves no trace is found when a photo cannot be decoded.
    damage(cache, as_if_untouched=True)
    store = ShardStore(index, cache)
    assert store.sample(0, 0) != first
    pixels = store.decoded(0, 0, whole, encoded=store.sample(0, 0)[1])
    assert np.array_equal(pixels, whole(first[1]))
    assert store.sample(0, 0) == first
    # A copy that is sound is not fetched for a photo that is damaged itself.
    with pytest.raises(DecodeError):
        store.decoded(0, 0, whole, encoded=b"no photo")
    assert len(server.requests["shard-000000.tar"]) == 3


def test_a_damaged_copy_is_blamed_on_the_server_only_if_its_own_is_damaged(
    server: FaultServer, cache: CacheConfig
) -> None:
    index = load_index(server.url, cache)
    size = index.shards[0].bytes
    ShardStore(index, cache).sample(0, 0)
    damage(cache, as_if_untouched=True)
    store = ShardStore(index, cache)
    store.sample(0, 0)
    server.faults["shard-000000.tar"].extend([("wrong", size)] * 2)
    with pytest.raises(UserError, match=r"shard-000000\.tar does not match its index"):
        store.decoded(0, 0, whole, encoded=store.sample(0, 0)[1])


def test_a_sound_copy_is_not_looked_at_again(
    server: FaultServer, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = load_index(server.url, cache)
    url, shard = f"{server.url}/shard-000000.tar", index.shards[0]
    ShardCache(cache).fetch(url, bytes=shard.bytes, sha256=shard.sha256).close()
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("it was hashed again"))
    ShardCache(cache).fetch(url, bytes=shard.bytes, sha256=shard.sha256).close()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Have nothing written in ``folder``, whoever asks."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a file system")
    mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_cache_that_cannot_be_written_serves_what_it_holds(server: FaultServer, cache: CacheConfig) -> None:
    index = load_index(server.url, cache)
    store = ShardStore(index, cache)
    first = store.sample(0, 0)
    with read_only(Path(cache.dir)):
        store = ShardStore(index, cache)
        assert store.sample(0, 0) == first
        total, there = 2 * len(index.shards), 2
        with pytest.raises(UserError, match=rf"lacks {total - there} of {total} files \(the first: .*000001.tar\)"):
            store.check()
        with pytest.raises(UserError, match=r"cannot be used: Read-only file system; set data.cache.dir"):
            store.sample(1, 0)
    for shard in range(1, len(index.shards)):
        store.sample(shard, 0)
    server.stop()
    with read_only(Path(cache.dir)):
        store = ShardStore(index, cache)
        store.check()
        assert store.sample(0, 0) == first


@pytest.mark.distributed
def test_a_run_whose_cache_can_keep_nothing_is_refused_before_it_begins(
    server: FaultServer, cache: CacheConfig, tmp_path: Path
) -> None:
    Path(cache.dir).mkdir()
    words = [*small(server.url, tmp_path, steps=(4, 0, 0)), f"data.cache.dir={cache.dir}"]
    with read_only(Path(cache.dir)):
        done = subprocess.run(
            [sys.executable, "-m", "glci_dist", "train", *words], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be written, and lacks" in done.stderr
    assert not (tmp_path / "run").exists()
