"""The functions of ours that a lone awaited step passes: client and server in one process, in their steady state.

`python -m tests.support.tracing` prints them, as the list in ARCHITECTURE.md has them.
"""

from __future__ import annotations

import asyncio
import dis
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

import numpy as np

import statestream
import statestream_server
from statestream_server import app
from tests.support import models
from tests.support.serving import free_settings

LEGS: Final = (
    "client out",
    "server in → engine",
    "engine → ONNX Runtime",
    "commit → outbox",
    "client back",
)
_WARM: Final = 60
STEPS: Final = 40
_PACKAGES: Final = tuple(Path(str(package.__file__)).parent for package in (statestream, statestream_server))
_HIDDEN: Final = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<module>")
"""What belongs to the function that it stands in."""


class Function(NamedTuple):
    """A function: whether it is the server's, its module within its package, and its name in it."""

    server: bool
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Call(NamedTuple):
    """A function that was entered, or went on, in a thread; `ran` says whether the model had been run by then."""

    function: Function
    thread: int
    ran: bool


CHOOSE: Final = "engine.engine.Engine._turn"
RUN: Final = "models.graphs.runtime.Binding.run"
"""Where legs end: before the first, behind the second."""
LAST: Final = "edges.grpc.outbox.Outbox.draw"
"""What the server does last, in vain; it may come when the caller has its answer already."""
_RESUME: Final = dis.opmap["RESUME"]
_AWAITED: Final = 3
"""The argument of RESUME behind an await."""


class Tracer:
    """Notes what runs in every thread that starts while it is on."""

    def __init__(self) -> None:
        """Nothing is noted until `begin`."""
        self.over = threading.Event()
        """Set when the server has done its last."""
        self._calls: list[Call] = []
        self._known: dict[CodeType, Function | None] = {}
        self._noting = self._ran = False
        self._passing: dict[int, FrameType] = {}

    def begin(self) -> None:
        """Notes from now on."""
        self.over.clear()
        self._calls, self._ran, self._noting = [], False, True

    def end(self) -> list[Call]:
        """What was noted since `begin`."""
        self._noting = False
        return self._calls

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """What `threading.setprofile` is given."""
        if event != "call" or not self._noting:
            return
        thread, code = threading.get_ident(), frame.f_code
        resumed = code.co_code[frame.f_lasti] == _RESUME and code.co_code[frame.f_lasti + 1] == _AWAITED
        passing = self._passing.pop(thread, None)
        if resumed and passing is not None and frame.f_back is passing:
            self._calls.pop()  # That one only waits for this one, which goes on.
        if code not in self._known:
            self._known[code] = _function(code)
        function = self._known[code]
        if function is None:
            return
        if resumed:
            self._passing[thread] = frame
        self._calls.append(Call(function, thread, self._ran))
        self._ran = self._ran or str(function) == RUN
        if str(function) == LAST and self._ran:
            self.over.set()


def _function(code: CodeType) -> Function | None:
    if code.co_name in _HIDDEN or code.co_filename.endswith(("_pb2.py", "_pb2_grpc.py")):
        return None
    for server, folder in enumerate(_PACKAGES):
        if Path(code.co_filename).is_relative_to(folder):
            module = ".".join(Path(code.co_filename).relative_to(folder).with_suffix("").parts)
            return Function(bool(server), module.removesuffix(".__init__"), code.co_qualname)
    return None


def legs_of(calls: list[Call]) -> tuple[tuple[Function, ...], ...]:
    """What one step passed: the functions of each leg, in the order in which they were first entered.

    Threads of the client run side by side, so what each does stands together, and all of the one that sends in one leg.
    """
    here = [call.function for call in calls if call.function.server]
    names = [str(function) for function in here]
    choose, run = names.index(CHOOSE), names.index(RUN) + 1
    client = [call for call in calls if not call.function.server]
    sending = {call.thread for call in client if not call.ran} - {client[0].thread}
    out, back = (
        _by_thread([call for call in client if (call.ran and call.thread not in sending) is ran])
        for ran in (False, True)
    )
    legs = out, here[:choose], here[choose:run], here[run:], back
    return tuple(tuple(dict.fromkeys(leg)) for leg in legs)


def _by_thread(calls: list[Call]) -> list[Function]:
    threads = dict.fromkeys(call.thread for call in calls)
    return [call.function for thread in threads for call in calls if call.thread == thread]


@contextmanager
def _server(folder: Path) -> Iterator[int]:
    """A server on a loop in a thread of its own, in mode `interval`; its port."""
    ready, stop = threading.Event(), list[Callable[[], object]]()
    ports = list[int]()

    async def serve() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(ended.set))
        settings: dict[str, Any] = {"store": f"sqlite:{folder}/store.db", "checkpoint_interval": 30.0}
        settings["quarantine"] = folder / "quarantine"  # As the command has it.
        async with app.running(free_settings(folder / "models", **settings)) as running:
            ports.append(running.port)
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(60), "the server did not start"
        yield ports[0]
    finally:
        stop[0]()
        thread.join()


def lone_steps(folder: Path) -> Counter[tuple[tuple[Function, ...], ...]]:
    """The legs of lone awaited steps of the synchronous client, and how many steps went so."""
    models.write(folder / "models", "lstm")
    tracer, seen = Tracer(), Counter[tuple[tuple[Function, ...], ...]]()
    threading.setprofile(tracer.note)
    try:
        with (
            _server(folder) as port,
            statestream.connect(f"127.0.0.1:{port}") as client,
            client.session("lstm", id="lone") as session,
        ):
            x = np.zeros(3, np.float32)
            for _ in range(_WARM):
                session.step(x)
            sys.setprofile(tracer.note)
            for _ in range(STEPS):
                tracer.begin()
                session.step(x)
                assert tracer.over.wait(10)
                seen[legs_of(tracer.end())] += 1
            sys.setprofile(None)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        ((found, times),) = lone_steps(Path(name)).most_common(1)
    said = dict(re.findall(r"^\d+\. `(\S+)` (.+)$", Path("ARCHITECTURE.md").read_text(), re.MULTILINE))
    for leg, functions in zip(LEGS, found, strict=True):
        print(f"\n**{leg}**\n")
        for number, function in enumerate(functions, 1):
            print(f"{number}. `{function}` {said.get(str(function), '')}".rstrip())
    print(f"\n{times} of {STEPS} steps went so")
    for who, sides in (("all", (False, True)), ("server", (True,)), ("client", (False,))):
        mine = [function for functions in found for function in functions if function.server in sides]
        print(f"{who}: {len(mine)} functions in {len({function[:2] for function in mine})} files")
