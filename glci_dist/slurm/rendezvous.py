"""Where the nodes of a job meet: at the first one, which takes a port that is free and says which.

The port that a job's number gives may be another program's, a job's that was there before, or another run's on the
same node. So the first node tries the ones after it too, at once, and leaves the one that it has in ``RUN/jobs``, where
the others look. They do not try: what listens at a port may be anything.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import ExitStack

from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from glci_dist.config import RESERVED_PORTS
from glci_dist.slurm.requeue import JobStart

_LOOK_S = 0.2
_KEEP_ALIVE_S = 5
_TAKEN = ("EADDRINUSE", "EACCES", "EADDRNOTAVAIL")


def meet(start: JobStart, *, host: str, is_host: bool, nodes: int) -> RendezvousHandler:
    """The meeting of ``nodes`` at ``host``, of its ports the one that the job's number gives, or the next that is free.

    Raises ``RendezvousError`` where no port is free, or the host says none within ``cluster.node_timeout_s``.
    """
    first_port, timeout_s = start.cluster.reserved_port, start.cluster.node_timeout_s

    def at(port: int) -> RendezvousHandler:
        meeting = RendezvousParameters(
            backend="c10d",
            endpoint=f"{host}:{port}",
            run_id=f"{start.job}.{start.restart}",
            min_nodes=nodes,
            max_nodes=nodes,
            local_addr=socket.gethostname(),
            is_host=is_host,
            join_timeout=timeout_s,
            timeout=timeout_s,
            read_timeout=timeout_s,
            keep_alive_interval=_KEEP_ALIVE_S,
        )
        return get_rendezvous_handler(meeting)

    if not is_host:
        deadline = time.monotonic() + timeout_s
        while (port := start.notes.meeting()) is None:
            if time.monotonic() > deadline:
                raise RendezvousTimeoutError(f"{host} did not say within {timeout_s} s at which port to meet")
            time.sleep(_LOOK_S)
        return at(port)
    number = int("".join(filter(str.isdigit, start.job)) or 0)
    ports = [first_port + (number + offset) % RESERVED_PORTS for offset in range(RESERVED_PORTS)]
    for place, port in enumerate(ports):
        if not _is_free(port):
            continue
        try:
            handler = at(port)
        except RendezvousConnectionError as problem:
            # Taken since.
            if any(name in str(problem.__cause__) for name in _TAKEN):
                continue
            raise
        if place:
            taken = f"port {ports[0]} is" if place == 1 else f"{place} ports are"
            start.say(f"{taken} taken on this node: the nodes meet at port {port}")
        start.notes.meet(host=host, port=port)
        return handler
    raise RendezvousConnectionError(
        f"of the ports {first_port} to {first_port + RESERVED_PORTS - 1} none is free on {host}"
    )


def _is_free(port: int) -> bool:
    """Whether nothing listens at a port, on any of this machine's addresses and in either protocol."""
    with ExitStack() as stack:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                probe = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            except OSError:
                # A machine without this protocol.
                continue
            # What only waits for a closed connection's last packets keeps nobody away.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError as problem:
                # IPv6 may be switched off.
                if problem.errno != errno.EADDRNOTAVAIL:
                    return False
    return True
