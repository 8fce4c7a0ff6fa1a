"""A real HTTP server on loopback that serves a folder with ranges, and misbehaves when told to."""

from __future__ import annotations

import base64
import ipaddress
import re
import ssl
import threading
from collections import defaultdict, deque
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class FaultServer:
    """Serves ``folder`` at ``url``. ``faults[name]`` is used up from the left, one for each GET:

    ("cut", n): the connection is cut after n bytes; ("status", code): that answer;
    ("stall", n): nothing after n bytes until ``release``; ("hold", n): as stall, then the rest;
    ("answer", bytes): those with status 200; ("status", code, headers): with headers;
    ("wrong", n): n other bytes; ("whole",): the range is ignored; ("serve",): nothing wrong.
    ``password``: ``user:password`` that each GET must bring, None for none; ``paths`` lists what each GET asked
    for, query and all. It is a http proxy too, for whatever host: then ``paths`` holds whole urls.
    ``certificate``: of a https server, with its key in one file (``write_certificate``).
    ``requests[name]`` lists the Range header (None without one) of each GET.
    """

    def __init__(self, folder: Path, *, certificate: Path | None = None) -> None:
        self.folder = folder
        self.faults: dict[str, deque[tuple]] = defaultdict(deque)
        self.requests: dict[str, list[str | None]] = defaultdict(list)
        self.paths: list[str] = []
        self.password: str | None = None
        self.release = threading.Event()
        self.stalled = threading.Event()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def do_HEAD(self) -> None:
                outer._answer_head(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer no more; connections are refused from now on."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def _name(asked: str) -> str:
        path = asked.partition("?")[0]
        return path.partition("://")[2].partition("/")[2] if "://" in path else path.lstrip("/")

    def _path(self, name: str) -> Path:
        # An s3 client asks this server for /bucket/name; any bucket is the folder.
        return self.folder / name.rpartition("/")[2]

    def _answer_head(self, handler: BaseHTTPRequestHandler) -> None:
        path = self._path(self._name(handler.path))
        handler.send_response(200 if path.is_file() else 404)
        handler.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        handler.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        handler.send_header("ETag", '"1"')
        handler.end_headers()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = self._name(handler.path)
        wanted = handler.headers.get("Range")
        with self._lock:
            self.paths.append(handler.path)
            self.requests[name].append(wanted)
            fault, *values = self.faults[name].popleft() if self.faults[name] else ("serve",)
        path = self._path(name)
        expected = self.password and "Basic " + base64.b64encode(self.password.encode()).decode()
        if expected and handler.headers.get("Authorization") != expected:
            handler.send_error(401)
            return
        if fault == "status" and len(values) > 1:
            handler.send_response(values[0])
            for key, value in (*values[1].items(), ("Content-Length", "0")):
                handler.send_header(key, value)
            handler.end_headers()
            return
        if fault == "status" or not path.is_file():
            handler.send_error(values[0] if fault == "status" else 404)
            return
        content = path.read_bytes()
        start, end = 0, len(content)
        if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "") if fault != "whole" else None:
            start, end = int(ranged[1]), min(end, int(ranged[2] or end - 1) + 1)
        if start >= len(content) > 0:
            handler.send_error(416)
            return
        if fault == "answer":
            content, start, end = values[0], 0, len(values[0])
        if fault == "wrong":
            content, end = b"\xff" * values[0], values[0]
        handler.send_response(206 if start or end < len(content) else 200)
        handler.send_header("Content-Length", str(end - start))
        handler.end_headers()
        sent = start + values[0] if fault in ("cut", "stall", "hold") else end
        handler.wfile.write(content[start:sent])
        if fault in ("stall", "hold"):
            handler.wfile.flush()
            self.stalled.set()
            self.release.wait(30)
        if fault == "hold":
            handler.wfile.write(content[sent:end])


def write_certificate(path: Path, *, address: str = "127.0.0.1", days: int = 1) -> Path:
    """A certificate for a server at ``address``, signed by itself, and its key; it ends after ``days``."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    end = datetime.now(UTC) + timedelta(days=days)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(end - timedelta(days=10))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(plain + certificate.public_bytes(pem))
    return path
