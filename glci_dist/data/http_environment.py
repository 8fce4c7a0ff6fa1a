"""Environment variables of http clients that aiohttp does not read: all_proxy, and certificate bundles.

aiohttp reads http_proxy, https_proxy, no_proxy and ~/.netrc itself (trust_env), and OpenSSL reads SSL_CERT_FILE.
"""

from __future__ import annotations

import functools
import os
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from glci_dist.errors import UserError
from glci_dist.urls import without_secrets

_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_HTTP_PORT = 80


def http_options(url: str) -> dict[str, Any]:
    """Arguments of a request for ``url``: ``proxy`` and ``ssl``, if aiohttp would not find them itself.

    UserError for a proxy that aiohttp cannot use, and for a bundle that cannot be read.
    """
    options: dict[str, Any] = {}
    proxy = _proxy(url)
    if proxy:
        options["proxy"] = proxy
    bundle = next((name for name in _BUNDLES if os.environ.get(name)), None)
    if bundle and not os.environ.get("SSL_CERT_FILE") and url.lower().startswith("https:"):
        options["ssl"] = _context(bundle, os.environ[bundle])
    return options


def proxies() -> set[tuple[str | None, int]]:
    """Host and port of each proxy of the environment."""
    places = set()
    for scheme in {"http", "https", "all"} & getproxies().keys():
        with suppress(ValueError):  # not a url: reported when it is used
            parts = urlsplit(_with_scheme(getproxies()[scheme]))
            places.add((parts.hostname, parts.port or _HTTP_PORT))
    return places


def _with_scheme(proxy: str) -> str:
    """``proxy`` as a url: host:port is a http proxy, as for curl."""
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxy(url: str) -> str | None:
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme.lower()) or proxies.get("all")
    if not proxy or proxy_bypass(f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)):
        return None
    proxy = _with_scheme(proxy)
    if urlsplit(proxy).scheme.lower() != "http":
        raise UserError(
            f"the proxy {without_secrets(proxy)} of the environment cannot be used: give a http:// one in http_proxy "
            "and https_proxy, or name the server in no_proxy"
        )
    return proxy


@functools.cache
def _context(name: str, bundle: str) -> ssl.SSLContext:
    try:
        if os.path.isdir(bundle):
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as fault:
        raise UserError(f"{name}={bundle} holds no certificates that can be read: {fault.strerror or fault}") from fault
