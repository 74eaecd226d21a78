"""A server asks a stream to take sessions elsewhere: it saves, finishes what is under way, and goes; or stays."""

from __future__ import annotations

import numpy as np
import pytest

from statestream import errors
from statestream.contract.errors import to_status
from statestream.contract.tensors import handles_column
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError
from tests.client.fake_server import Fake
from tests.client.twins import Twin
from tests.client.wire import Wire, notice
from tests.client.world import FEATURES, World, ones

ONE = np.ones((1, FEATURES))


def ask(wire: Wire, *handles: int) -> None:
    wire.core.receive(pb.StreamResponse(move=pb.MoveFrame(handles=handles_column(np.array(handles)))), wire.now)


def test_the_stream_goes_once_what_was_answered_is_saved_and_the_rest_is_answered(wire: Wire) -> None:
    a, b = wire.open("a", "b").tolist()
    wire.step(a, ONE)
    wire.run()
    assert wire.world.durable("a") == 0
    ask(wire, b)
    flush = wire.core.next_request(wire.now)
    assert flush is not None
    assert flush.WhichOneof("request") == "flush"
    between = wire.step(a, ONE)  # Nobody waits for the store.
    assert wire.send()
    wire.requests.insert(0, flush)
    wire.serve()
    assert wire.world.durable("a") == 1
    wire.deliver()
    behind = wire.step(a, ONE)
    assert not wire.send()
    assert not wire.core.drained
    wire.run()
    assert between.done
    assert wire.core.drained
    wire.cut()
    wire.world.restart()  # The other server has what is stored.
    wire.settle()
    assert behind.value[0, 0] == 3
    assert not wire.core.going_away


def test_what_is_due_waits_for_the_next_stream(wire: Wire) -> None:
    """A writer that is told of a time that is over, and is given nothing, would ask again and again."""
    a, b = wire.open("a", "b").tolist()
    wire.core.receive(notice(a, errors.NotOwner("another server has it", retry_after=0.5)), wire.now)
    assert wire.core.due() == wire.now + 0.5
    wire.step(b, ONE)
    assert wire.send()
    ask(wire, a, b)
    wire.now += 1
    assert not wire.core.drained
    assert wire.core.due() is None
    wire.run()
    wire.cut()
    wire.settle()
    wire.step(a, ONE)
    wire.run()
    assert not wire.core.busy


def test_with_all_saved_it_goes_at_once(wire: Wire) -> None:
    handles = wire.open("a", "b").tolist()
    ask(wire, *handles)
    assert wire.core.drained


def test_where_few_are_asked_for_all_stay(wire: Wire) -> None:
    handles = wire.open("a", "b", "c").tolist()
    ask(wire, handles[0], 77)
    assert not wire.core.going_away
    ask(wire, *handles[:2])
    assert wire.core.going_away


def test_a_stream_without_sessions_stays(wire: Wire) -> None:
    ask(wire)
    ask(wire, 0)
    assert not wire.core.going_away


def test_without_a_store_nothing_moves() -> None:
    wire = Wire(World(pb.DURABILITY_MODE_NONE))
    wire.connect()
    ask(wire, *wire.open("a").tolist())
    assert not wire.core.going_away


def test_where_the_store_is_away_it_stays_and_may_be_asked_again(wire: Wire) -> None:
    (a,) = wire.open("a").tolist()
    wire.step(a, ONE)
    wire.run()
    ask(wire, a)
    flush = wire.core.next_request(wire.now)
    assert flush is not None
    row = RowError(handle=a, status=to_status(errors.StoreUnavailable("away")))
    wire.core.receive(pb.StreamResponse(frame=flush.frame, durable=pb.DurableFrame(errors=[row])), wire.now)
    assert not wire.core.going_away
    assert wire.step(a, ONE) is not None
    wire.run()
    ask(wire, a)
    wire.run()
    assert wire.core.going_away


def test_the_next_stream_owes_the_last_one_nothing(wire: Wire) -> None:
    """A flush of the stream that was asked is sent again; what comes of it moves no other stream."""
    (a,) = wire.open("a").tolist()
    wire.step(a, ONE)
    wire.run()
    ask(wire, a)
    wire.send()
    wire.cut()
    wire.settle()
    assert wire.world.durable("a") == 1
    assert not wire.core.going_away


async def test_a_client_that_is_asked_goes_to_the_next_address(twin: Twin, fake: Fake) -> None:
    other = Fake(fake.world)
    try:
        client = await twin.connect(f"{fake.address},{other.address}")
        session = await twin.call(client.session, "sum", "a")
        await twin.call(session.step, ones())
        fake.ask_to_move(0)
        while not other.streams:
            await twin.call(session.step, ones())
        before = session.position
        assert (await twin.call(session.step, ones()))[0] == before + 1
        await twin.call(client.close)
    finally:
        other.stop()


async def test_with_one_address_it_comes_back(twin: Twin, fake: Fake) -> None:
    client = await twin.connect(fake.address)
    session = await twin.call(client.session, "sum", "a")
    for position in range(4):
        assert (await twin.call(session.step, ones()))[0] == position + 1
        fake.ask_to_move(0)
    while fake.streams < 2:
        await twin.call(session.step, ones())
    await twin.call(client.close)


@pytest.mark.parametrize(("share", "error"), [(0, ValueError), (1.0000001, ValueError), ("half", TypeError)])
async def test_what_is_no_share_is_told_at_once(twin: Twin, fake: Fake, share: object, error: type) -> None:
    client = await twin.connect(fake.address)
    with pytest.raises(error, match=rf"share is .*{share}.*; expected a number above 0, at most 1"):
        await twin.call(client.move_sessions, share)
    await twin.call(client.close)
