"""Calls that are interrupted at any line, or cancelled at any await: nothing leaks or hangs, the client goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import statestream
from statestream import aio
from tests.client.fake_server import Fake
from tests.client.world import ones

HERE = str(Path(statestream.__file__).parent)


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that this thread runs in the client, as Ctrl-C does between lines."""

    def __init__(self, line: int) -> None:
        self.left = line
        self.raised = False

    def __enter__(self) -> Interrupt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        # The core runs in the link's threads, which no signal reaches.
        if not frame.f_code.co_filename.startswith(HERE) or "__del__" in frame.f_code.co_name:
            return None
        # A trace may raise where a lock is let go, where Python hears no signal.
        lock = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")
        if event == "line" and not self.raised and not lock:
            self.left -= 1
            if self.left <= 0:
                self.raised = True
                raise KeyboardInterrupt
        return self._trace


def settled(client: statestream.Client) -> int:
    """How many sessions somebody has, once what was asked of the core before is done."""
    done = threading.Event()
    client._link.do(done.set)
    assert done.wait(10)
    probe = client.session("sum", "probe")
    probe.step(ones())
    probe.delete()  # What is let go before it is answered before it, or soon after.
    table = client._link.core.table
    return int(table.holders[: table.size].sum())


def calls(client: statestream.Client, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Operations, each with what it needs open before."""
    session = client.session("sum", f"used-{number}")
    pool = client.sessions("sum", 2)
    yield "session", lambda: client.session("sum", f"s{number}").close()
    yield "anonymous", lambda: client.session("sum").close()
    yield "pool", lambda: client.sessions("sum", 3).close()
    yield "step", lambda: session.step(ones())
    yield "stream", lambda: list(session.stream([ones(), ones(), ones()]))
    yield "forecast", lambda: list(session.forecast(2))
    yield "flush", session.flush
    yield "reset", session.reset
    yield "snapshot", session.snapshot
    yield "fork", lambda: session.fork().close()
    yield "rows", lambda: pool.step(ones(2))
    yield "close", session.close
    yield "delete", pool.delete


def test_a_session_that_nobody_has_is_let_go_at_once_and_not_when_cycles_are_looked_for(fake: Fake) -> None:
    with statestream.connect(fake.address) as client:
        session = client.session("sum", "dropped")
        session.step(ones())
        session.fork().close()
        gone = weakref.ref(session)
        gc.disable()
        try:
            del session
            assert gone() is None
        finally:
            gc.enable()


NAMES = ["session", "anonymous", "pool", "step", "stream", "forecast", "flush", "reset", "snapshot", "fork", "rows"]


LONG = ("anonymous", "close", "forecast", "fork", "pool")
"""Calls of so many lines that going through them takes seconds each: slow tests."""


MIDDLING = ("session", "snapshot", "stream")
"""Those that take a second or some: each third line but in a slow test."""


def interrupted() -> Iterator[Any]:
    """Each call, and how many lines on it is interrupted next."""
    for name in (*NAMES, "close", "delete"):
        if name in MIDDLING:
            yield pytest.param(name, 3, id=f"{name}, each third line")
        yield pytest.param(name, 1, id=name, marks=[pytest.mark.slow] if name in (*LONG, *MIDDLING) else [])


@pytest.mark.parametrize(("what", "each"), [*interrupted()])
def test_ctrl_c_at_any_line_leaks_nothing_and_leaves_the_client_usable(fake: Fake, what: str, each: int) -> None:
    with statestream.connect(fake.address) as client:
        client.session("sum", "warm").close()
        for line in range(1, 2000, each):
            before = settled(client)
            call = dict(calls(client, line))[what]
            interrupt = Interrupt(line)
            with contextlib.suppress(KeyboardInterrupt), interrupt:
                call()
            del call
            if not interrupt.raised:
                break
            if settled(client) != before:
                gc.collect()  # What nobody has any more, though it may be in a cycle with a traceback.
            assert settled(client) == before, f"line {line} of {what}"
        else:
            raise AssertionError("the call never ended")
        assert client.session("sum", "warm").step(ones())[0] >= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "statestream"]


@pytest.mark.parametrize("what", [*NAMES, "close", "delete"])
async def test_a_task_that_is_cancelled_at_any_await_leaks_nothing(fake: Fake, what: str) -> None:
    async with aio.connect(fake.address) as client:

        async def run(number: int, turns: int) -> bool:
            """Whether the call was over before it was cancelled, so many turns of the loop after its begin."""
            session = await client.session("sum", f"used-{number}")
            pool = await client.sessions("sum", 2)

            async def opened(make: Callable[[], Any]) -> None:
                await (await make()).close()

            async def fork() -> None:
                await (await session.fork()).close()

            async def each(items: Any) -> None:
                async for _ in items:
                    pass

            made: dict[str, Callable[[], Any]] = {
                "session": lambda: opened(lambda: client.session("sum", f"s{number}")),
                "anonymous": lambda: opened(lambda: client.session("sum")),
                "pool": lambda: opened(lambda: client.sessions("sum", 3)),
                "step": lambda: session.step(ones()),
                "stream": lambda: each(session.stream([ones(), ones(), ones()])),
                "forecast": lambda: each(session.forecast(2)),
                "flush": session.flush,
                "reset": session.reset,
                "snapshot": session.snapshot,
                "fork": fork,
                "rows": lambda: pool.step(ones(2)),
                "close": session.close,
                "delete": pool.delete,
            }
            task = asyncio.ensure_future(made[what]())
            for _ in range(turns):
                if task.done():
                    break
                await asyncio.sleep(0)
            over = task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for thing in (session, pool):
                async with asyncio.timeout(20):
                    await thing.close()
            return over

        turns, number = 0, 0
        while not await run(number, turns):
            number += 1
            turns += 1 if turns < 40 else 10
        async with asyncio.timeout(20):
            probe = await client.session("sum", "probe")
            assert (await probe.step(ones()))[0] == 1
            await probe.delete()
            table = client._link.core.table
            while table.state[: table.size].any():
                await (await client.session("sum", "again")).delete()
        assert not client._link.core.busy
        assert not client._link.core.sharing.waiting
