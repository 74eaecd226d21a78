"""What only one of the twins does: tasks and cancellation here, threads and signals there."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc.aio._call import StreamStreamCall

import statestream
from statestream import aio, errors
from statestream.core import StreamCore
from tests.client.fake_server import Fake
from tests.client.world import FEATURES

ONE = np.ones(FEATURES, np.float32)


async def test_tasks_that_wait_at_once_share_frames(fake: Fake) -> None:
    async with aio.connect(fake.address) as client, asyncio.TaskGroup() as group:
        opened = [client.session("sum", str(n)) for n in range(300)]
        sessions = await asyncio.gather(*(anext_of(one) for one in opened))
        assert fake.world.frames == ["open"]
        fake.world.frames.clear()
        steps = [group.create_task(session.step(ONE)) for session in sessions]
        values = await asyncio.gather(*steps)
        assert [float(y[0]) for y in values] == [1.0] * 300
        assert fake.world.frames == ["chunk"] * 2  # Two halves, for both sides to work at once.


async def anext_of(opening: object) -> aio.Session:
    session = await opening  # type: ignore[misc]
    assert isinstance(session, aio.Session)
    return session


async def test_a_cancelled_step_that_was_sent_is_applied_and_the_session_goes_on(fake: Fake) -> None:
    async with aio.connect(fake.address) as client, client.session("sum", "a") as session:
        fake.gate.clear()
        fake.world.frames.clear()
        step = asyncio.create_task(session.step(ONE))
        assert await asyncio.to_thread(fake.arrived.wait, 10)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        fake.gate.set()
        assert (await session.step(ONE))[0] == 2
        assert session.position == 2


async def test_a_cancelled_step_that_was_not_sent_is_dropped(fake: Fake) -> None:
    async with aio.connect(fake.address) as client, client.session("sum", "a") as session:
        client._link.core.going_away = True  # No frame leaves.
        step = asyncio.create_task(session.step(ONE))
        await asyncio.sleep(0)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        client._link.core.going_away = False
        assert (await session.step(ONE))[0] == 1


async def test_a_live_source_and_its_outputs_do_not_wait_for_each_other(fake: Fake) -> None:
    arrived: asyncio.Queue[np.ndarray | None] = asyncio.Queue()

    async def source() -> AsyncIterator[np.ndarray]:
        while (item := await arrived.get()) is not None:
            yield item

    async with aio.connect(fake.address) as client, client.session("sum") as session:
        outputs = session.stream(source())
        for n in range(1, 4):
            arrived.put_nowait(ONE)
            # The source is silent now; the output must come all the same.
            assert (await asyncio.wait_for(anext(outputs), 10))[0] == n
        arrived.put_nowait(ONE)
        arrived.put_nowait(None)
        assert [y[0] async for y in outputs] == [4]


async def test_a_stream_left_early_leaves_the_session_usable(fake: Fake) -> None:
    async with aio.connect(fake.address) as client, client.session("sum", "a") as session:
        async for y in session.stream(np.ones((50, FEATURES), np.float32), ahead=8):
            if y[0] == 5:
                break
        gc.collect()
        y = await session.step(ONE)
        assert session.position == y[0] >= 6


async def test_the_loop_is_free_while_nothing_answers(fake: Fake) -> None:
    async with aio.connect(fake.address) as client, client.session("sum", "a") as session:
        fake.gate.clear()
        step = asyncio.create_task(session.step(ONE))
        async with asyncio.timeout(10):
            for _ in range(1000):
                await asyncio.sleep(0)
        assert not step.done()
        fake.gate.set()
        assert (await step)[0] == 1


async def test_a_fault_is_heard_where_a_write_meets_the_end_of_the_stream(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a write gives the call a status of gRPC's own in the place of the server's; here every stream has one."""
    async with aio.connect(fake.address) as client, client.session("sum", "a") as session:
        write = StreamStreamCall.write

        async def late(call: Any, request: object) -> None:
            call.add_done_callback(spoil)
            await write(call, request)

        def spoil(call: Any) -> None:
            if call not in spoilt:
                spoilt.append(call)
                call._cython_call.set_internal_error("a write was late")

        spoilt: list[object] = []
        fake.fault = grpc.StatusCode.UNKNOWN
        with monkeypatch.context() as patched:
            patched.setattr(StreamStreamCall, "write", late)
            with pytest.raises(errors.InternalError, match="cut by the test"):
                await asyncio.wait_for(client.session("sum", "b"), 20)
        assert len(spoilt) >= 5
        fake.fault = None
        assert (await session.step(ONE))[0] == 1


def test_threads_share_a_client(fake: Fake) -> None:
    with statestream.connect(fake.address) as client, ThreadPoolExecutor(8) as threads:

        def run(n: int) -> list[float]:
            with client.session("sum", f"s{n}") as session:
                return [float(session.step(ONE)[0]) for _ in range(20)]

        assert list(threads.map(run, range(16))) == [[float(k) for k in range(1, 21)]] * 16


def test_ctrl_c_in_a_step_is_prompt_and_leaves_the_client_usable(fake: Fake) -> None:
    with statestream.connect(fake.address) as client:
        session = client.session("sum", "a")
        session.step(ONE)
        fake.gate.clear()
        fake.arrived.clear()
        interrupted: list[float] = []
        interrupt = threading.Thread(target=interrupt_when_sent, args=(fake, interrupted))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            session.step(ONE)
        heard = time.monotonic()
        interrupt.join()
        # A wait has turns of a second: a signal right before one is heard at its end. The server answers after 30.
        assert heard - interrupted[0] < 5
        fake.gate.set()
        assert session.step(ONE)[0] == 3


def interrupt_when_sent(fake: Fake, interrupted: list[float]) -> None:
    if fake.arrived.wait(10):
        interrupted.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_a_closed_client_has_no_thread(fake: Fake) -> None:
    client = statestream.connect(fake.address)
    client.session("sum", "a").step(ONE)
    client.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "statestream"]
    with pytest.raises(errors.Closed):
        client.session("sum", "b")


def test_a_client_that_nobody_has_ends_its_connection_and_its_finalizer_waits_for_nothing(fake: Fake) -> None:
    """It may run in the midst of anything; Ctrl-C in it would be lost."""
    link = statestream.connect(fake.address)._link
    fake.gate.clear()
    with link._lock:  # Its threads are busy.
        gc.collect()
        assert link._thread.is_alive()
    link._thread.join(10)
    link._watcher.join(10)
    assert not link._thread.is_alive()
    assert not link._watcher.is_alive()


async def test_an_asyncio_client_that_nobody_has_ends_its_connection(fake: Fake) -> None:
    link = (await aio.connect(fake.address))._link
    gc.collect()
    assert link._task is not None
    async with asyncio.timeout(10):
        with contextlib.suppress(asyncio.CancelledError):
            await link._task


async def test_a_client_whose_close_is_cancelled_is_closed(fake: Fake) -> None:
    client = await aio.connect(fake.address)
    session = await client.session("sum", "a")
    fake.gate.clear()
    step = asyncio.create_task(session.step(ONE))
    assert await asyncio.to_thread(fake.arrived.wait, 10)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(errors.Closed):
        await step
    assert client._link._task is not None
    assert client._link._task.done()


def test_a_pool_keeps_its_client(fake: Fake) -> None:
    pool = statestream.connect(fake.address).sessions("sum", 3)
    gc.collect()
    assert pool.step(np.ones((3, FEATURES))).shape == (3, FEATURES)
    pool._client.close()


def test_a_hook_that_fails_is_only_logged(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    def hook(address: str) -> None:
        raise RuntimeError(address)

    with statestream.connect(fake.address, on_reconnect=hook) as client, client.session("sum", "a") as session:
        session.step(ONE)
        fake.drop()
        assert session.step(ONE)[0] == 2
    assert "on_reconnect failed" in caplog.text


def test_items_of_a_generator_are_not_taken_ahead(fake: Fake) -> None:
    taken = []

    def source() -> Iterator[np.ndarray]:
        for n in range(5):
            taken.append(n)
            yield ONE

    with statestream.connect(fake.address) as client, client.session("sum") as session:
        for n, y in enumerate(session.stream(source()), start=1):
            assert y[0] == n
            assert len(taken) == n


async def test_a_fault_where_frames_are_made_is_told_and_nobody_hangs(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that writes ends with it, the stream alone would wait for ever."""
    async with aio.connect(fake.address) as client:
        session = await client.session("sum")

        def fault(*_: object) -> None:
            raise RuntimeError("nobody thought of it")

        monkeypatch.setattr(StreamCore, "next_request", fault)
        with pytest.raises(errors.InternalError, match="nobody thought of it"):
            await asyncio.wait_for(session.step(np.ones(2)), 20)
