"""One server process as the operating system sees it: event loop, log, exit status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from collections.abc import Callable, Iterator

from statestream_server import logs
from statestream_server.models.proof import trials
from statestream_server.settings import Settings, check_console, check_reach, check_tls

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
    logs.to_stderr(log_level, settings.log_format)
    check_reach(settings)
    check_tls(settings)
    check_console(settings)
    heard = None if on_terminal() else reread
    if sys.platform == "win32":
        with uncollected():
            from statestream_server import app

        asyncio.run(app.serve(settings, heard, worker))
        return
    # The process that tries the models imports ONNX Runtime while this one imports gRPC.
    if settings.proofs is None or not any(settings.proofs.glob("*")):
        trials.shared().prepare()
    try:
        with uncollected():
            import uvloop

            from statestream_server import app

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(app.serve(settings, heard, worker))
    finally:
        trials.leave()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What is imported in the block stays as long as the process: nobody looks for garbage in it, then or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def on_terminal() -> bool:
    """Whether a person started it by hand, and it is to end with the terminal."""
    return sys.stdin is not None and sys.stdin.isatty()
