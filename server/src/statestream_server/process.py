"""One server process as the operating system sees it: event loop, log, exit status."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable

from statestream_server.models.proof import trials
from statestream_server.settings import Settings, check_reach, check_tls

Reread = Callable[[], tuple[Settings, str]]
"""Reads the settings and the level of the log anew, from where they came."""


def run(
    settings: Settings, log_level: str, *, reread: Reread | None = None, worker: socket.socket | None = None
) -> None:
    """Serves until a signal.

    Args:
        settings: How.
        log_level: How much it tells.
        reread: Reads settings and log level anew, with SIGHUP; on a terminal, whose end SIGHUP tells, it is not.
        worker: Connected to the process of which this one is a worker; None where it is the only one.

    Raises:
        StartError: The server cannot start.
        ImportError: ONNX Runtime is not installed.
    """
    log_to_stderr(log_level)
    check_reach(settings)
    check_tls(settings)
    heard = None if on_terminal() else reread
    if sys.platform == "win32":
        from statestream_server import app

        asyncio.run(app.serve(settings, heard, worker))
        return
    # The process that tries the models imports ONNX Runtime while this one imports gRPC.
    if settings.proofs is None or not any(settings.proofs.glob("*")):
        trials.shared().prepare()
    try:
        import uvloop

        from statestream_server import app

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(app.serve(settings, heard, worker))
    finally:
        trials.shared().close()


def on_terminal() -> bool:
    """Whether a person started it by hand, and it is to end with the terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def log_to_stderr(level: str) -> None:
    """Sends the log to standard error: coloured on a terminal, plain lines elsewhere."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
