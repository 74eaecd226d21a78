"""One server process as the operating system sees it: event loop, log, exit status."""

from __future__ import annotations

import asyncio
import logging
import sys

from statestream_server.models.proof import trials
from statestream_server.settings import Settings, check_reach


def run(settings: Settings, log_level: str, told: int | None = None) -> None:
    """Serves until a signal.

    Args:
        settings: How.
        log_level: How much it tells.
        told: A file descriptor that becomes readable when it is to leave as for a first signal.

    Raises:
        StartError: The server cannot start.
        ImportError: ONNX Runtime is not installed.
    """
    log_to_stderr(log_level)
    check_reach(settings)
    if sys.platform == "win32":
        from statestream_server import app

        asyncio.run(app.serve(settings, told))
        return
    # The process that tries the models imports ONNX Runtime while this one imports gRPC.
    if settings.proofs is None or not any(settings.proofs.glob("*")):
        trials.shared().prepare()
    try:
        import uvloop

        from statestream_server import app

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(app.serve(settings, told))
    finally:
        trials.shared().close()


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
