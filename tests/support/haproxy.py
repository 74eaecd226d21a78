"""A real HAProxy in front of servers: it sends a request where the hash of its route key says."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.server.stores.redis_server import free_port, wait_until
from tests.services import require_binary

_CONFIG = """
defaults
    mode http
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    option redispatch
frontend grpc
    bind 127.0.0.1:{port} proto h2
    default_backend replicas
backend replicas
    balance hdr(x-session-id)
    hash-type consistent
    default-server proto h2 check inter 100ms fall 1 rise 1 on-marked-down shutdown-sessions
"""


@contextlib.contextmanager
def haproxy(folder: Path, addresses: Sequence[str]) -> Iterator[str]:
    """Starts it, waits until it listens, and ends it; what it yields is its address."""
    binary, port = require_binary("haproxy"), free_port()
    servers = [f"    server replica{n} {address}\n" for n, address in enumerate(addresses)]
    file = folder / "haproxy.cfg"
    file.write_text(_CONFIG.format(port=port) + "".join(servers))
    process = subprocess.Popen([binary, "-db", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: process.poll() is not None or _listens(port), "haproxy listens")
        assert process.poll() is None, f"haproxy ended with {process.poll()}"
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
