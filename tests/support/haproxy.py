"""A real HAProxy in front of servers: it sends a request where the hash of its route key says."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.server.stores.redis_server import free_port, wait_until
from tests.services import require_binary

_CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


@contextlib.contextmanager
def haproxy(folder: Path, addresses: Sequence[str]) -> Iterator[str]:
    """Starts it with the configuration in deploy/, but for names, and ends it; yields its address once it listens."""
    binary, port = require_binary("haproxy"), free_port()
    config = _CONFIG.read_text().replace("bind :8001", f"bind 127.0.0.1:{port}")
    config = config.replace("bind :8404", f"bind 127.0.0.1:{free_port()}")
    template = next(line for line in config.splitlines() if "server-template" in line)
    servers = [f"    server replica{n} {address}" for n, address in enumerate(addresses, 1)]
    config = config.replace(template, "\n".join(servers))
    file = folder / "haproxy.cfg"
    file.write_text(config)
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
