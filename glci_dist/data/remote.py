"""Reads http, https and s3 urls through fsspec, with retries after network errors."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import fsspec

from glci_dist.config import CacheConfig
from glci_dist.data.http_environment import http_options, proxies
from glci_dist.data.location import check_location
from glci_dist.errors import UserError
from glci_dist.urls import without_secrets

log = logging.getLogger(__name__)

# s3 makes one request per chunk, so a chunk must be large compared with a round trip. http streams; aiohttp holds two
# chunks in memory, which are lost with the connection.
_S3_CHUNK = 16 * 2**20
_HTTP_CHUNK = 2**18
# Client errors that may pass: timeout, too early, too many requests.
_PASSING_STATUS = (408, 425, 429)
_RANGE_NOT_SATISFIABLE = 416
_WITH_CONTENT = (200, 203, 206)
# Permanent errors of aiohttp and botocore that have no status.
_FINAL = (
    *("TooManyRedirects", "NonHttpUrlRedirectClientError", "InvalidUrlRedirectClientError"),
    *("NoCredentialsError", "InvalidUrlClientError", "NonHttpUrlClientError"),
)
# OpenSSL's reasons for refusing a certificate (X509_V_ERR_...): not yet valid, expired; another host, another address.
_OUT_OF_DATE = (9, 10)
_ANOTHER_HOST = (62, 64)
_LONGEST_ASKED_S = 600.0

Result = TypeVar("Result")


def read_remote(url: str, cache: CacheConfig | None = None) -> bytes:
    """The whole content of ``url`` in memory (for an index, not for a shard).

    ``cache`` has retries, backoff and timeout. UserError if the url is refused or missing, or cannot be read after the
    last retry.
    """
    check_location(url)
    config = cache or CacheConfig()
    return retrying(url, config, lambda: b"".join(Stream(url, start=0, timeout_s=config.timeout_s)))


def retrying(url: str, config: CacheConfig, attempt: Callable[[], Result]) -> Result:
    """What ``attempt`` returns, retried after network errors with exponential backoff.

    UserError with the url and the reason after ``config.retries`` retries, or at once if the error is permanent (no
    such file, no permission).
    """
    network_errors = _network_errors(url)
    shown = without_secrets(url)
    retry = 0
    while True:
        try:
            return attempt()
        except network_errors as error:
            fault = _innermost(error)
            reason, advice = _explained(fault, url)
            reason = without_secrets(reason)
            if _is_final(fault):
                raise UserError(f"{shown} cannot be read: {reason}; {advice}") from error
            if retry == config.retries:
                raise UserError(
                    f"{shown} cannot be read after {retry} retries: {reason}; "
                    f"check the {_who(fault)}, or raise data.cache.retries or data.cache.timeout_s"
                ) from error
            wait_s = max(config.backoff_s * 2**retry, _asked_wait_s(fault))
            retry += 1
            log.warning("%s: %s; retry %d of %d in %.1f s", shown, reason, retry, config.retries, wait_s)
            time.sleep(wait_s)


class Stream:
    """The bytes of ``url`` from byte ``start`` on, iterated over in chunks of at most 16 MiB.

    The attribute ``start`` is 0 if the server cannot start in the middle of a file. The constructor and the iteration
    raise network errors unchanged, for ``retrying``.
    """

    def __init__(self, url: str, *, start: int, timeout_s: float) -> None:
        self.start = start
        # Created in the process that reads: fsspec's event loop runs in a thread, which does not survive a fork.
        is_s3 = url.lower().startswith("s3:")
        self._chunk = _S3_CHUNK if is_s3 else _HTTP_CHUNK
        self._file = self._open_s3(url, timeout_s) if is_s3 else self._open_http(url, timeout_s)

    def __iter__(self) -> Iterator[bytes]:
        with closing(self._file):
            while chunk := self._file.read(self._chunk):
                yield chunk

    def _open_s3(self, url: str, timeout_s: float) -> Any:
        botocore_config = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"max_attempts": 0}}
        files = fsspec.filesystem("s3", config_kwargs=botocore_config)
        files.retries = 1  # only ours: retries of several layers would multiply
        file = files.open(url, "rb", cache_type="none")
        file.seek(min(self.start, file.size))
        return file

    def _open_http(self, url: str, timeout_s: float) -> Any:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        # trust_env: proxies and ~/.netrc. A query may be signed, and must not be re-encoded.
        encoded = "?" in url
        options = http_options(url)
        files = fsspec.filesystem(
            "http", client_kwargs={"timeout": timeout, "trust_env": True}, encoded=encoded, **options
        )
        if encoded:
            url = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
        # A compressed transfer would have no byte offsets to resume at.
        headers = {"Accept-Encoding": "identity"}
        if self.start:
            headers["Range"] = f"bytes={self.start}-"
        try:
            # block_size=0 streams in one request; size avoids fsspec's HEAD request.
            file = files.open(url, "rb", block_size=0, size=1, headers=headers)
        except aiohttp.ClientResponseError as fault:
            if fault.status != _RANGE_NOT_SATISFIABLE or not self.start:
                raise
            self.start = 0
            return self._open_http(url, timeout_s)
        except ValueError as fault:
            if isinstance(fault, ssl.SSLError | aiohttp.RedirectClientError):
                raise
            # aiohttp's error for a url or proxy that it cannot parse.
            raise UserError(
                f"{without_secrets(url)} or its proxy (http_proxy) is no url: {without_secrets(str(fault))}"
            ) from fault
        if file.r.status not in _WITH_CONTENT:
            file.close()
            raise UserError(
                f"{without_secrets(url)} cannot be read: the server answered {file.r.status} and no file; check the url"
            )
        if file.r.status != 206:
            self.start = 0
        return file


def _network_errors(url: str) -> tuple[type[Exception], ...]:
    """The errors that a transfer from ``url`` may raise; UserError if its library is not installed."""
    scheme = url.partition(":")[0].lower()
    try:
        import aiohttp

        errors: tuple[type[Exception], ...] = (OSError, aiohttp.ClientError)
        if scheme != "s3":
            return errors
        import s3fs  # noqa: F401  (reported before a missing botocore)
        from botocore.exceptions import BotoCoreError, ClientError

        return (*errors, BotoCoreError, ClientError)
    except ImportError as fault:
        needed, package = ("s3fs", "glci-dist[s3]") if scheme == "s3" else ("aiohttp", "fsspec[http]")
        raise UserError(f"{scheme} urls need {needed}, which is not installed: pip install '{package}'") from fault


def _innermost(error: Exception) -> Exception:
    """aiohttp's error inside of botocore's, or the error itself."""
    inner = getattr(error, "kwargs", {}).get("error")
    return inner if isinstance(inner, Exception) else error


def _is_final(fault: Exception) -> bool:
    if isinstance(fault, FileNotFoundError | PermissionError):
        return True
    if _distrust(fault) or _speaks_no_tls(fault) or type(fault).__name__ in _FINAL:
        return True
    status = getattr(fault, "status", None)
    return isinstance(status, int) and 300 <= status < 500 and status not in _PASSING_STATUS


def _distrust(fault: Exception) -> ssl.SSLCertVerificationError | None:
    """The verification error, if the server's certificate is not trusted."""
    inner = getattr(fault, "certificate_error", fault)
    return inner if isinstance(inner, ssl.SSLCertVerificationError) else None


def _speaks_no_tls(fault: Exception) -> bool:
    return "WRONG_VERSION_NUMBER" in str(fault)


def _who(fault: Exception) -> str:
    # If the proxy's own name cannot be resolved, aiohttp reports it like any host.
    place = (getattr(fault, "host", None), getattr(fault, "port", None))
    if type(fault).__name__ == "ClientProxyConnectionError" or place in proxies():
        return "proxy (http_proxy, https_proxy; no_proxy names servers that need none)"
    return "server"


def _asked_wait_s(fault: Exception) -> float:
    """The server's Retry-After in seconds, bounded; 0 if it has none."""
    text = (getattr(fault, "headers", None) or {}).get("Retry-After", "")
    wait_s = 0.0
    with suppress(ValueError, TypeError):
        wait_s = float(text) if text.isdigit() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    return min(max(wait_s, 0.0), _LONGEST_ASKED_S)


def _explained(fault: Exception, url: str) -> tuple[str, str]:
    """The reason of an error in one line, and what to do about it if it is permanent."""
    kind, status = type(fault).__name__, getattr(fault, "status", None)
    advice = "check the url and your right to read it"
    if isinstance(fault, FileNotFoundError):
        return "no such file", advice
    if kind == "NoCredentialsError":
        return "no credentials (for a public bucket set FSSPEC_S3_ANON=true)", advice
    if distrust := _distrust(fault):
        variable = "AWS_CA_BUNDLE" if url.lower().startswith("s3:") else "SSL_CERT_FILE"
        advice = f"name the file of its certificate authority by {variable}"
        if distrust.verify_code in _OUT_OF_DATE:
            advice = "have it renewed, or set the clock of this machine"
        elif distrust.verify_code in _ANOTHER_HOST:
            advice = "give the host by a name that its certificate has"
        return f"its certificate is not trusted here ({distrust.verify_message.rstrip('.')})", advice
    if _speaks_no_tls(fault):
        return "it speaks no TLS there", "check scheme and port: http://, perhaps"
    if "Redirect" in kind:
        reason = f"it redirects to what is no http url ({_in_a_line(fault)})"
        advice = "give the url that the shards lie at; a login page redirects those who have no credentials (~/.netrc)"
        return "it redirects again and again" if kind == "TooManyRedirects" else reason, advice
    if status == 407:
        advice = (
            "the proxy asks for user and password, or refuses those it got: export them in its url, in http_proxy or "
            "https_proxy, where the command starts (they are not stored)"
        )
    elif "?" in url and status in (400, 401, 403):
        advice = (
            "its signature or token may be too old, or bound to one file: for a folder of shards it must cover all "
            "that lies below (a SAS token of the container does, a presigned url does not)"
        )
    elif status == 401:
        advice = "give user and password, or better ones, in ~/.netrc (machine, login, password)"
    if isinstance(status, int) and status:
        said = _in_a_line(getattr(fault, "message", ""))
        return f"the {'proxy' if status == 407 else 'server'} answered {status} {said}".rstrip(), advice
    return "timed out" if isinstance(fault, TimeoutError) else f"{kind}: {_in_a_line(fault)}", advice


def _in_a_line(said: object) -> str:
    return " ".join(str(said).split())
