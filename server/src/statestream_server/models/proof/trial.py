"""The trial: a process of its own that reads, loads and tries models, so that no file ends the server.

It is started by trials.py. Requests and answers are lines of JSON over two pipes; what it does is told as it begins, so
that whoever hears no more knows where it ended. A third pipe has nothing written to it: when it closes, the system ends
this process, whatever native code it is in.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import re
import resource
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_IDLE_SECONDS: Final = 20.0
"""It leaves after so long without a request; another is started when one comes."""
_TIRED_BYTES: Final = 512 << 20
"""It is replaced once so much memory is left over from what it tried."""
_F_SETSIG: Final = 10
"""fcntl's command on Linux; Python does not name it."""
_NO_MEMORY = re.compile(r"bad_alloc|[Ff]ailed to allocate memory|bad allocation|Cannot allocate memory")


class OutOfMemoryError(Exception):
    """A trial needed more memory than it was given."""


def main(life: int) -> None:
    """Tries models until the other side leaves.

    Args:
        life: The file descriptor that closes when the parent ends.
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # Whatever prints does not print into the answers.
    _die_with(life)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to all; the parent says when to leave.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # Where memory ends, this process goes first.
    gc.disable()  # Nothing that imports make is garbage.
    from statestream_server.models.proof import making  # noqa: F401  # Imports what takes time, before the first trial.
    from statestream_server.models.proof.verdict import watch

    gc.freeze()
    gc.enable()

    def say(**what: Any) -> None:
        os.write(answers, (json.dumps(what) + "\n").encode())

    watch.doing = lambda text: say(doing=text)
    say(ready=True)
    first = _data_bytes()
    for request in _requests():
        say(began=True)
        say(**_answer(request, say), tired=_data_bytes() - first > _TIRED_BYTES)


def _requests() -> Iterator[dict[str, Any]]:
    rest = b""
    while True:
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            yield json.loads(line)
        if not select.select([0], [], [], _IDLE_SECONDS)[0] or not (more := os.read(0, 1 << 16)):
            return
        rest += more


def _answer(request: dict[str, Any], say: Any) -> dict[str, Any]:
    from statestream_server.models.graphs.runtime import providers_for
    from statestream_server.models.model import BatchPolicy, ModelLoadError
    from statestream_server.models.proof import making
    from statestream_server.models.proof.verdict import TrialLimits, watch

    limits = TrialLimits(**request["limits"])

    def sized(nbytes: int, row: int) -> None:
        say(bytes=nbytes, row=row)
        _bound(limits.bytes_for(nbytes))

    said = _Said()
    watch.sized = sized
    try:
        watch.doing("starting its device")
        device = providers_for(request["device"], request["threads"])
        # A GPU's driver reserves addresses without end: there, only the files' sizes and the time bound a trial.
        if device.apart:
            watch.sized = lambda nbytes, row: say(bytes=nbytes, row=row)
        else:
            _bound(limits.bytes_for(0))
        with said:
            policy = BatchPolicy(request["policy"])
            verdict = making.prove(Path(request["path"]), device, policy, said=request.get("said"))
        return {"verdict": json.loads(verdict.dumps()), "said": said.lines}
    except ModelLoadError as error:
        return {"memory": True} if _NO_MEMORY.search(str(error)) else {"refused": str(error)}
    except MemoryError:
        return {"memory": True}
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"memory": True} if _NO_MEMORY.search(text) else {"failed": text}
    finally:
        _bound(None)
        gc.collect()


class _Said(logging.Handler):
    """Keeps what the server's modules log meanwhile: it belongs into the server's own log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))

    def __enter__(self) -> None:
        log = logging.getLogger("statestream_server")
        log.setLevel(logging.INFO)
        log.addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("statestream_server").removeHandler(self)


def _die_with(life: int) -> None:
    """Has the system kill this process when the other end of a pipe closes."""
    if sys.platform == "linux":
        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([life], [], [], 0)[0]:
            os._exit(1)  # It closed before.
    else:

        def wait() -> None:
            os.read(life, 1)
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def _bound(nbytes: int | None) -> None:
    """Lets this process take so many bytes more than it has; None for any number."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = hard if nbytes is None else _data_bytes() + nbytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _data_bytes() -> int:
    """Bytes that count for the limit; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
