"""Answers of servers and proxies that no later request would better: one line at once, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from glci_dist.config import CacheConfig
from glci_dist.data.remote import read_remote
from glci_dist.errors import UserError
from glci_dist.urls import without_secrets
from tests.data.fault_server import FaultServer, write_certificate

NAME = "index.json"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    (tmp_path / NAME).write_bytes(b"{}")
    with FaultServer(tmp_path) as running:
        yield running


def refusal(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """The one line that reading ``url`` ends with; no other request may have been tried."""
    with pytest.raises(UserError) as raised:
        read_remote(url, CacheConfig(retries=3, backoff_s=0.01, timeout_s=5.0))
    assert "retry" not in caplog.text
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (NAME, "it redirects again and again; give the url that the shards lie at"),
        ("ftp://me:hunter2@h/x", "it redirects to what is no http url (ftp://***@h/x); give the url"),
        ("http://me:hunter2@[h/x", "it redirects to what is no http url (http://***@[h/x"),
        (None, "the server answered 302 and no file; check the url"),
    ],
)
def test_a_redirection_that_leads_nowhere_is_final(
    server: FaultServer, caplog: pytest.LogCaptureFixture, to: str | None, said: str
) -> None:
    server.faults[NAME].extend([("status", 302, {"Location": to} if to else {})] * 99)
    line = refusal(f"{server.url}/{NAME}", caplog)
    assert said in line
    assert "hunter2" not in line
    assert len(server.requests[NAME]) == (10 if to == NAME else 1)


def test_a_redirection_to_the_file_is_followed(server: FaultServer) -> None:
    server.faults["moved"].append(("status", 302, {"Location": NAME}))
    assert read_remote(f"{server.url}/moved") == b"{}"


@pytest.mark.parametrize(
    ("address", "days", "is_known", "said"),
    [
        ("127.0.0.1", 1, False, r"self-signed certificate\); name the file of its certificate authority by SSL_CERT_"),
        ("127.0.0.2", 1, True, r"IP address mismatch.*; give the host by a name that its certificate has"),
        ("127.0.0.1", -1, True, r"has expired\); have it renewed"),
    ],
)
def test_a_certificate_that_is_not_trusted_is_final_and_says_why(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    days: int,
    is_known: bool,
    said: str,
) -> None:
    certificate = write_certificate(tmp_path / "certificate.pem", address=address, days=days)
    if is_known:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with FaultServer(tmp_path, certificate=certificate) as server:
        line = refusal(f"{server.url}/{NAME}", caplog)
    assert "its certificate is not trusted here" in line
    assert re.search(said, line), line


def test_a_trusted_certificate_opens_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = write_certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    (tmp_path / NAME).write_bytes(b"{}")
    with FaultServer(tmp_path, certificate=certificate) as server:
        assert read_remote(f"{server.url}/{NAME}") == b"{}"


def test_a_store_of_objects_with_such_a_certificate_is_told_its_own_variable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with FaultServer(tmp_path, certificate=write_certificate(tmp_path / "certificate.pem")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        line = refusal(f"s3://bucket/{NAME}", caplog)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert "not trusted here (self-signed certificate); name the file of its certificate authority by AWS_CA" in line


def test_a_server_without_tls_is_told_at_once(server: FaultServer, caplog: pytest.LogCaptureFixture) -> None:
    line = refusal(f"{server.url.replace('http:', 'https:')}/{NAME}", caplog)
    assert "it speaks no TLS there; check scheme and port" in line


def test_a_proxy_that_asks_for_a_password_is_told_apart_from_the_server(
    server: FaultServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("://", "://me:hunter2@"))
    server.faults[NAME].append(("status", 407))
    line = refusal(f"http://shards.invalid/{NAME}", caplog)
    assert "the proxy answered 407" in line
    assert "the proxy asks for user and password" in line
    assert "in http_proxy or https_proxy" in line
    assert "hunter2" not in line
    # As the command line prints it.
    assert without_secrets(line) == line


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:hunter2@127.0.0.1:9")
    with pytest.raises(UserError, match=r"after 0 retries.*check the proxy") as raised:
        read_remote(f"http://shards.invalid/{NAME}", CacheConfig(retries=0))
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("proxy", ["no-such-proxy.invalid", "http://me:hunter2@no-such-proxy.invalid:3128"])
def test_a_proxy_whose_name_is_not_known_is_told_apart_from_the_server(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(UserError, match=r"after 0 retries.*check the proxy \(http_proxy") as raised:
        read_remote(f"http://127.0.0.1:9/{NAME}", CacheConfig(retries=0))
    assert "hunter2" not in str(raised.value)
    monkeypatch.setenv("no_proxy", "shards.invalid")
    with pytest.raises(UserError, match="check the server"):
        read_remote(f"http://shards.invalid/{NAME}", CacheConfig(retries=0))
