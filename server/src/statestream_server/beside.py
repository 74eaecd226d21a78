"""The server that `statestream.local` starts beside its caller: it leaves when that one has ended, however it did."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_LOOKS: Final = 1.0
"""Seconds between looks at who its parent is, where the system cannot tell that a process ended."""
_PATIENCE: Final = 5.0
"""Beyond what a stop may take, in seconds."""


def main() -> None:
    """Serves on a Unix socket until the caller ends or lets go; the arguments are its process and those of `serve`."""
    gc.disable()  # Until all is imported that serves; see `process.uncollected`.
    caller, arguments = int(sys.argv[1]), sys.argv[2:]
    folder = Path(arguments[arguments.index("--unix") + 1]).parent if "--unix" in arguments else None
    try:
        # A caller may end at once, before the server hears signals: its folder is cleared away all the same.
        signal.signal(signal.SIGTERM, _leave)
        _serve(caller, arguments)
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                (folder / "grpc").unlink(missing_ok=True)
                folder.rmdir()  # A caller that was killed cannot.


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _serve(caller: int, arguments: list[str]) -> None:
    leaving = _Leaving()
    threading.Thread(target=_watch, args=(caller, leaving), name="caller", daemon=True).start()

    import click

    from statestream_server import cli, process
    from statestream_server.settings import StartError

    try:
        # The file of a service on this machine is not for it, unless somebody says so.
        file = [] if os.environ.get("STATESTREAM_CONFIG") else ["--config="]
        with cli.serve.make_context("serve", [*file, "--port=0", "--no-http", *arguments]) as context:
            settings, _, level = cli.settings_of(**context.params)
        if settings.unix:
            settings = replace(settings, only_unix=True, advertise=f"unix:{settings.unix}")
        leaving.grace = settings.drain_grace
        process.run(settings, level)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (StartError, ImportError, OSError) as error:
        sys.exit(f"Error: {error}")


@dataclass(slots=True)
class _Leaving:
    grace: float = 0.0


def _watch(caller: int, leaving: _Leaving) -> None:
    """Returns never: asks this process to leave once the caller has ended, and ends it where it does not."""
    _until_it_ends(caller)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(leaving.grace + _PATIENCE)
    os._exit(1)


def _until_it_ends(caller: int) -> None:
    """Its end is that of the pipe; a process that it forked may have the other end too, so it is looked at as well."""
    if sys.platform == "win32":
        os.read(0, 1)
        return
    ends, alone = [0], os.getppid() != caller
    with contextlib.suppress(AttributeError, OSError):
        ends.append(os.pidfd_open(caller))
    timeout = None if len(ends) > 1 else _LOOKS
    while not alone:
        if select.select(ends, [], [], timeout)[0]:
            return
        alone = os.getppid() != caller
