"""`python -m benchmarks.sampled FILE serve …`: the command `statestream` with a sampler on its main thread.

SIGUSR1 starts the sampler, SIGUSR2 stops it and writes what it found to FILE: seconds by phase. A timer interrupts
the thread; the handler sees where it was and gives that place the time since the last look. Nothing of the
product takes part, and nothing is traced, so the proportions are those of a server without sampler.
"""

from __future__ import annotations

import dis
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

MEAN_SECONDS: Final = 0.001
"""Between two looks."""

RUN, ROWS, ENGINE, SESSIONS, FRAMES, REST = PHASES = (
    "ONNX Runtime",
    "gather, checks and commit around it",
    "engine: queue and batches",
    "sessions: positions, replies, saving",
    "frames ↔ arrays",
    "gRPC, protobuf, event loop",
)
ROOMS: Final = (
    ("statestream_server/models/graphs/runtime.py", RUN),
    ("statestream_server/models/", ROWS),
    ("statestream_server/engine/replies.py", SESSIONS),
    ("statestream_server/engine/", ENGINE),
    ("statestream_server/sessions/", SESSIONS),
    ("statestream_server/stores/", SESSIONS),
    ("statestream_server/edges/grpc/", FRAMES),
    ("onnxruntime/", RUN),
)
BETWEEN: Final = {
    ("statestream_server/edges/grpc/stream.py", "serve"),
    ("statestream_server/edges/grpc/outbox.py", "write"),
}
"""Loops that only await and call: what is seen in them is gRPC's or the event loop's, which have no frames."""
_RESUME: Final = dis.opmap["RESUME"]


class Sampler:
    """Seconds of the main thread by phase."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase_of: dict[CodeType, str | None] = {}
        self._entries: dict[CodeType, frozenset[int]] = {}
        self._last, self._on = 0.0, False
        signal.signal(signal.SIGALRM, self._look)
        signal.signal(signal.SIGUSR1, self._start)
        signal.signal(signal.SIGUSR2, self._stop)

    def _start(self, _number: int, _frame: FrameType | None) -> None:
        self._on, self._last = True, time.perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._arm()

    def _look(self, _number: int, frame: FrameType | None) -> None:
        now = time.perf_counter()
        self._seconds[self._phase(frame)] += now - self._last
        self._last = now
        if self._on:
            self._arm()

    def _arm(self) -> None:
        # Looks at random times see every state as often as it is there, also where work comes in cycles.
        signal.setitimer(signal.ITIMER_REAL, random.expovariate(1 / MEAN_SECONDS) + 1e-5)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._seconds))
        part.rename(self._file)

    def _phase(self, frame: FrameType | None) -> str:
        """The phase of the innermost function that has one; its callees' time is its own.

        Python looks for signals when a function is entered and after calls: what is seen at an entry was spent
        before it, by the caller.
        """
        if frame is not None and self._entered(frame):
            frame = frame.f_back
        while frame is not None:
            code = frame.f_code
            if code not in self._phase_of:
                self._phase_of[code] = phase_of(code.co_filename, code.co_name)
            phase = self._phase_of[code]
            if phase is not None:
                return phase
            frame = frame.f_back
        return REST

    def _entered(self, frame: FrameType) -> bool:
        code = frame.f_code
        if code not in self._entries:
            self._entries[code] = frozenset(i for i, op in enumerate(code.co_code) if not i % 2 and op == _RESUME)
        return frame.f_lasti in self._entries[code]


def phase_of(path: str, name: str) -> str | None:
    if any(path.endswith(file) and name == function for file, function in BETWEEN):
        return REST
    return next((phase for room, phase in ROOMS if room in path), None)


def main() -> None:
    from statestream.cli import main as statestream

    Sampler(Path(sys.argv[1]))
    sys.argv[1:] = sys.argv[2:]
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    statestream()


if __name__ == "__main__":
    main()
