"""Servers that restart, leave, fail or are not there, and clients that close: what callers of both clients see."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest

from statestream import errors
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import World, ones


async def test_a_restart_is_not_seen_by_the_caller(connect: Connect, twin: Twin, fake: Fake) -> None:
    seen: list[str] = []
    client = await connect(on_reconnect=seen.append)
    session = await twin.call(client.session, "sum", "a")
    pool = await twin.call(client.sessions, "sum", 20)
    for n in range(1, 10):
        assert (await twin.call(session.step, ones()))[0] == n
        assert (await twin.call(pool.step, ones(20)))[:, 0].tolist() == [n] * 20
        if n == 3:
            fake.world.save()
        if n % 4 == 0:
            await asyncio.to_thread(fake.restart)
    assert len(seen) == 2
    assert fake.world.rows["a"].position == 9


async def test_a_step_waits_for_a_server_that_is_away(connect: Connect, twin: Twin, fake: Fake) -> None:
    session = await twin.call((await connect()).session, "sum", "a")
    fake.gate.clear()
    step = asyncio.create_task(twin.call(session.step, ones()))
    await asyncio.to_thread(fake.restart)
    assert (await asyncio.wait_for(step, 20))[0] == 1


async def test_a_server_that_lost_all_is_state_lost(twin: Twin) -> None:
    fake = Fake(World(pb.DURABILITY_MODE_NONE))
    try:
        client = await twin.connect(fake.address)
        session = await twin.call(client.session, "sum", "a")
        await twin.call(session.step, ones())
        await twin.call(session.step, ones())
        await asyncio.to_thread(fake.restart, lose_everything=True)
        with pytest.raises(errors.StateLost):
            await twin.call(session.step, ones())
        fresh = await twin.call(client.session, "sum", "a")
        assert fresh.position == 0
        await twin.call(client.close)
    finally:
        fake.stop()


async def test_after_a_go_away_the_client_moves_to_the_next_address(twin: Twin, fake: Fake) -> None:
    other = Fake(fake.world)
    try:
        client = await twin.connect(f"{fake.address},{other.address}")
        session = await twin.call(client.session, "sum", "a")
        await twin.call(session.step, ones())
        fake.go_away()
        while not other.streams:
            await twin.call(session.step, ones())
        before = session.position
        assert (await twin.call(session.step, ones()))[0] == before + 1
        await twin.call(client.close)
    finally:
        other.stop()


async def test_a_server_that_says_that_it_leaves_gets_no_stream(twin: Twin, fake: Fake) -> None:
    other = Fake(fake.world)
    try:
        fake.draining = True
        client = await twin.connect(f"{fake.address},{other.address}")
        session = await twin.call(client.session, "sum", "a")
        assert (await twin.call(session.step, ones()))[0] == 1
        assert (fake.streams, other.streams) == (0, 1)
        other.draining, fake.draining = True, False
        other.go_away()
        while not fake.streams:
            await twin.call(session.step, ones())
        await twin.call(client.close)
        fake.draining = True
        with pytest.raises(errors.ServerUnavailable, match="is leaving"):
            await twin.connect(fake.address, connect_timeout=0.3)
    finally:
        other.stop()


async def test_a_server_that_refuses_as_it_leaves_is_left_by_and_by(twin: Twin, fake: Fake) -> None:
    client = await twin.connect(fake.address)
    fake.world.unsaid = [errors.Draining("the server is leaving", retry_after=600.0)] * 3
    session = await asyncio.wait_for(twin.call(client.session, "sum", "a"), 20)
    assert (await twin.call(session.step, ones()))[0] == 1
    assert fake.streams == 4
    await twin.call(client.close)


@pytest.mark.parametrize("what", ["generate", "forecast"])
async def test_an_answer_in_parts_is_finished_by_the_next_server(twin: Twin, fake: Fake, what: str) -> None:
    other = Fake(fake.world)
    try:
        client = await twin.connect(f"{fake.address},{other.address}")
        session = await twin.call(client.session, "sum", "a")
        await twin.call(session.step, ones())
        fake.halt = 2
        fake.gate.clear()
        calls = {"generate": (client.generate_steps, "upper", "abcd"), "forecast": (session.forecast, 4)}
        answer = asyncio.create_task(twin.collect(*calls[what]))
        await asyncio.to_thread(fake.halted.wait, 20)
        fake.go_away()
        found = await asyncio.wait_for(answer, 20)
        assert [str(part) for part in found] == list("ABCD") if what == "generate" else len(found) == 4
        await twin.call(client.close)
    finally:
        other.stop()


async def test_nothing_there_is_a_clear_error_in_time(twin: Twin) -> None:
    with pytest.raises(errors.ServerUnavailable, match="localhost:1") as caught:
        await asyncio.wait_for(twin.connect("localhost:1", connect_timeout=0.3), 5)
    waited = re.search(r" for (\d+\.\d) s: ", caught.value.message)
    assert waited
    assert 0.3 <= float(waited[1]) < 5
    with pytest.raises(ValueError, match="host:port"):
        await twin.connect("nowhere")


async def test_an_operation_gives_up_after_the_retry_timeout(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect(retry_timeout=0.5)
    session = await twin.call(client.session, "sum", "a")
    idle = await twin.call(client.session, "sum", "b")
    await asyncio.to_thread(fake.stop)
    with pytest.raises(errors.ServerUnavailable, match="may or may not"):
        await asyncio.wait_for(twin.call(session.step, ones()), 10)
    with pytest.raises(errors.ServerUnavailable):
        await asyncio.wait_for(twin.call(client.predict, "double", ones(1)), 10)
    fake.start()
    client2 = await connect()
    assert (await twin.call(client2.predict, "double", ones(1))).tolist() == [[2, 2]]
    again = await twin.call(client.session, "sum", "a")
    assert (await twin.call(again.step, ones()))[0] == 1
    assert (await twin.call(idle.step, ones()))[0] == 1


async def test_a_step_that_the_server_does_not_survive_is_its_callers_to_know(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client = await connect()
    poisoned = await twin.call(client.session, "sum", "a")
    healthy = await twin.call(client.session, "sum", "b")
    fake.fault, fake.poison = grpc.StatusCode.INTERNAL, 13.0
    with pytest.raises(errors.InternalError, match="cut by the test"):
        await asyncio.wait_for(twin.call(poisoned.step, ones() * 13), 10)
    assert fake.streams <= 8
    assert (await twin.call(healthy.step, ones()))[0] == 1
    again = await twin.call(client.session, "sum", "a")
    assert (await twin.call(again.step, ones()))[0] == 1


async def test_a_server_that_fails_at_every_frame_is_not_asked_for_ever(
    connect: Connect, twin: Twin, fake: Fake
) -> None:
    client = await connect()
    session = await twin.call(client.session, "sum", "a")
    fake.fault = grpc.StatusCode.UNKNOWN
    with pytest.raises(errors.InternalError, match="cut by the test"):
        await asyncio.wait_for(twin.call(client.session, "sum", "b"), 10)
    with pytest.raises(errors.InternalError, match="cut by the test"):
        await asyncio.wait_for(twin.call(session.flush), 10)
    fake.fault = None
    assert (await twin.call(session.step, ones()))[0] == 1


async def test_streams_that_break_again_and_again_are_no_answer(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect(retry_timeout=0.5)
    session = await twin.call(client.session, "sum", "a")
    fake.lose_replies = 1 << 30
    with pytest.raises(errors.ServerUnavailable, match="may or may not"):
        await asyncio.wait_for(twin.call(session.step, ones()), 10)
    fake.lose_replies = 0
    again = await twin.call(client.session, "sum", "a")
    assert again.position == 1


async def test_close_is_prompt_and_lets_go(twin: Twin, fake: Fake) -> None:
    client = await twin.connect(fake.address)
    named = await twin.call(client.session, "sum", "a")
    await twin.call(client.sessions, "sum", 10)
    await twin.call(named.step, ones())
    await asyncio.wait_for(twin.call(client.close), 5)
    assert list(fake.world.rows) == ["a"]
    assert fake.world.durable("a") == 1
    with pytest.raises(errors.Closed):
        await twin.call(named.step, ones())
    with pytest.raises(errors.Closed):
        await twin.call(client.models)
    gone = await twin.connect(fake.address)
    await twin.call(gone.session, "sum", "b")
    await asyncio.to_thread(fake.stop)
    await asyncio.wait_for(twin.call(gone.close), 5)


async def test_a_break_and_its_end_are_a_warning_each(
    connect: Connect, twin: Twin, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    session = await twin.call((await connect()).session, "sum", "a")
    await asyncio.to_thread(fake.restart)
    await twin.call(session.step, ones())
    said = [record.getMessage() for record in caplog.records if record.name == "statestream"]
    assert [message.split(fake.address)[0] for message in said] == ["the stream to ", "connected to "]
    assert {record.levelname for record in caplog.records if record.name == "statestream"} == {"WARNING"}
