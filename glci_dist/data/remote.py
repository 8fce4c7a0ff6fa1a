"""Reads http, https and s3 urls through fsspec, and tries again what a network may do better next time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, TypeVar

import fsspec

from glci_dist.config import CacheConfig
from glci_dist.data.location import check_location
from glci_dist.errors import UserError

log = logging.getLogger(__name__)

# s3 asks once for each chunk, so a chunk must outweigh a round trip. http streams, and aiohttp keeps
# two chunks in memory, which a cut connection loses.
_S3_CHUNK = 16 * 2**20
_HTTP_CHUNK = 2**18
# Client errors that a later request may not meet: timeout, too early, too many requests.
_PASSING_STATUS = (408, 425, 429)
_RANGE_NOT_SATISFIABLE = 416

Result = TypeVar("Result")


def read_remote(url: str, cache: CacheConfig | None = None) -> bytes:
    """The whole content of ``url`` (an index, not a shard: it is held in memory).

    ``cache`` gives retries, backoff and timeout. UserError when the url is refused, missing or
    cannot be read after the last retry.
    """
    check_location(url)
    config = cache or CacheConfig()
    return retrying(url, config, lambda: b"".join(Stream(url, start=0, timeout_s=config.timeout_s)))


def retrying(url: str, config: CacheConfig, attempt: Callable[[], Result]) -> Result:
    """What ``attempt`` returns, tried again after network errors with exponential backoff.

    UserError with the url and the reason after ``config.retries`` retries, or at once where the
    server's answer is final (no such file, no permission).
    """
    network_errors = _network_errors(url)
    retry = 0
    while True:
        try:
            return attempt()
        except network_errors as fault:
            reason = _reason(fault)
            if _is_final(fault):
                raise UserError(f"{url} cannot be read: {reason}; check the url and your right to read it") from fault
            if retry == config.retries:
                raise UserError(
                    f"{url} cannot be read after {retry} retries: {reason}; "
                    "check the server, or raise data.cache.retries or data.cache.timeout_s"
                ) from fault
            wait_s = config.backoff_s * 2**retry
            retry += 1
            log.warning("%s: %s; retry %d of %d in %.1f s", url, reason, retry, config.retries, wait_s)
            time.sleep(wait_s)


class Stream:
    """The bytes of ``url`` from byte ``start`` on, iterated over in chunks of at most 16 MiB.

    ``start`` is 0 afterwards where the server cannot begin in the middle of a file. Network errors
    come out of the constructor and the iteration as they are; ``retrying`` knows them.
    """

    def __init__(self, url: str, *, start: int, timeout_s: float) -> None:
        self.start = start
        # The file system is made here, in the process that reads: fsspec keeps an event loop in a
        # thread, which does not survive a fork.
        is_s3 = url.lower().startswith("s3:")
        self._chunk = _S3_CHUNK if is_s3 else _HTTP_CHUNK
        self._file = self._open_s3(url, timeout_s) if is_s3 else self._open_http(url, timeout_s)

    def __iter__(self) -> Iterator[bytes]:
        with closing(self._file):
            while chunk := self._file.read(self._chunk):
                yield chunk

    def _open_s3(self, url: str, timeout_s: float) -> Any:
        botocore_config = {
            "connect_timeout": timeout_s,
            "read_timeout": timeout_s,
            "retries": {"max_attempts": 0},
        }
        files = fsspec.filesystem("s3", config_kwargs=botocore_config)
        files.retries = 1  # ours are the only retries, or the three layers' numbers multiply
        file = files.open(url, "rb", cache_type="none")
        file.seek(min(self.start, file.size))
        return file

    def _open_http(self, url: str, timeout_s: float) -> Any:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        files = fsspec.filesystem("http", client_kwargs={"timeout": timeout})
        # Compressed on the way, a shard would have no byte offsets to resume at.
        headers = {"Accept-Encoding": "identity"}
        if self.start:
            headers["Range"] = f"bytes={self.start}-"
        try:
            # block_size 0 streams in one request; a given size spares fsspec's HEAD request.
            file = files.open(url, "rb", block_size=0, size=1, headers=headers)
        except aiohttp.ClientResponseError as fault:
            if fault.status != _RANGE_NOT_SATISFIABLE or not self.start:
                raise
            self.start = 0
            return self._open_http(url, timeout_s)
        if file.r.status != 206:
            self.start = 0
        return file


def _network_errors(url: str) -> tuple[type[Exception], ...]:
    """What a transfer from ``url`` may raise; UserError where its library is not installed."""
    scheme = url.partition(":")[0].lower()
    try:
        import aiohttp

        errors: tuple[type[Exception], ...] = (OSError, aiohttp.ClientError)
        if scheme != "s3":
            return errors
        import s3fs  # noqa: F401  (its absence must be told before botocore's)
        from botocore.exceptions import BotoCoreError, ClientError

        return (*errors, BotoCoreError, ClientError)
    except ImportError as fault:
        raise _missing(scheme) from fault


def _missing(scheme: str) -> UserError:
    if scheme == "s3":
        return UserError("s3 urls need s3fs, which is not installed: pip install 'glci-dist[s3]'")
    return UserError(f"{scheme} urls need aiohttp, which is not installed: pip install 'fsspec[http]'")


def _is_final(fault: Exception) -> bool:
    if isinstance(fault, FileNotFoundError | PermissionError):
        return True
    if type(fault).__name__ == "NoCredentialsError":
        return True
    status = getattr(fault, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS


def _reason(fault: Exception) -> str:
    if isinstance(fault, FileNotFoundError):
        return "no such file"
    if type(fault).__name__ == "NoCredentialsError":
        return "no credentials (for a public bucket set FSSPEC_S3_ANON=true)"
    status = getattr(fault, "status", None)
    if isinstance(status, int) and status:
        return f"the server answered {status} {getattr(fault, 'message', '')}".rstrip()
    if isinstance(fault, TimeoutError):
        return "timed out"
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"
