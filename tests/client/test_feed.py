"""A feed of messages for many sessions, with both clients: order, bounds, errors of one id, restarts, leaving early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import statestream
from statestream import errors
from statestream.aio.feeding import Feeding
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import ones


def messages(ids: int, each: int) -> list[tuple[str, Any]]:
    """So many steps for each of so many sessions, in turns."""
    return [(f"s{number % ids}", ones()) for number in range(ids * each)]


def by_id(found: list[tuple[str, Any]]) -> dict[str, list[Any]]:
    told: dict[str, list[Any]] = {}
    for id, y in found:
        told.setdefault(id, []).append(y if isinstance(y, Exception) else y[0])
    return told


@pytest.mark.parametrize("most", [1000, 2])
async def test_each_message_is_applied_once_in_the_order_of_its_id(
    connect: Connect, twin: Twin, fake: Fake, most: int
) -> None:
    client = await connect()
    found = await twin.collect(client.feed, "sum", messages(7, 5), max_sessions=most)
    assert by_id(found) == {f"s{number}": [1, 2, 3, 4, 5] for number in range(7)}
    assert {row.position for row in fake.world.rows.values()} == {5}


async def test_an_iterator_gets_each_answer_before_it_is_asked_again(connect: Connect, twin: Twin) -> None:
    client, seen = await connect(), list[str]()

    def source() -> Iterator[tuple[str, Any]]:
        for number, message in enumerate(messages(2, 3)):
            assert len(seen) == number
            yield message

    await twin.each(lambda item: seen.append(item[0]), client.feed, "sum", source())
    assert seen == ["s0", "s1"] * 3


async def test_a_restart_costs_no_message_and_repeats_none(connect: Connect, twin: Twin, fake: Fake) -> None:
    client, found = await connect(), list[tuple[str, Any]]()

    def note(item: tuple[str, Any]) -> Any:
        found.append(item)
        if len(found) in (20, 60):
            return asyncio.to_thread(fake.restart) if twin.name == "aio" else fake.restart()
        return None

    await twin.each(note, client.feed, "sum", messages(10, 10), ahead=16, max_sessions=20)
    assert by_id(found) == {f"s{number}": list(range(1, 11)) for number in range(10)}
    assert {row.position for row in fake.world.rows.values()} == {10}


async def test_a_refused_message_costs_no_other(connect: Connect, twin: Twin) -> None:
    client = await connect()
    fed = [("a", ones()), ("a", [1, 2, 3]), ("b", "x"), ("a", np.full(2, np.inf)), ("a", ones()), ("b", ones())]
    told = by_id(await twin.collect(client.feed, "sum", fed, return_errors=True))
    assert [type(answer).__name__ for answer in told["a"]] == ["float32", "BadTensor", "NonFiniteState", "float32"]
    assert (told["a"][-1], told["b"][-1]) == (2, 1)
    seen: list[Any] = []
    with pytest.raises(errors.BadTensor) as caught:
        await twin.each(seen.append, client.feed, "sum", [("c", ones()), ("c", [1, 2, 3]), ("d", ones())], ahead=1)
    assert [id for id, _ in seen] == ["c"]
    assert "for session 'c' of 'sum'" in caught.value.__notes__[0]


async def test_what_did_not_open_is_tried_again_with_the_next_message(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()
    told = by_id(
        await twin.collect(client.feed, "sum", [("a", ones())] * 2, mode="resume", return_errors=True, ahead=1)
    )
    assert [type(answer) for answer in told["a"]] == [errors.SessionNotFound] * 2
    again = messages(3, 2)
    told = by_id(await twin.collect(client.feed, "sum", again, mode="create", max_sessions=1))
    assert set(map(tuple, told.values())) == {(1, 2)}, "created once, resumed then"
    told = by_id(await twin.collect(client.feed, "sum", again, mode="create", return_errors=True))
    assert {type(answer) for answers in told.values() for answer in answers} == {errors.SessionExists}


async def test_who_took_a_session_keeps_it(connect: Connect, twin: Twin) -> None:
    client, other = await connect(), await connect()
    found: list[Any] = []

    async def steal() -> None:
        await twin.call((await twin.call(other.session, "sum", "a")).step, ones())

    def source() -> Iterator[tuple[str, Any]]:
        yield "a", ones()
        yield "b", ones()
        yield "a", ones()
        yield "a", ones()

    def note(item: Any) -> Any:
        found.append(item)
        if len(found) != 2:
            return None
        if twin.name == "aio":
            return steal()
        return other.session("sum", "a").step(ones())

    await twin.each(note, client.feed, "sum", source(), return_errors=True)
    assert [type(answer).__name__ for answer in by_id(found)["a"]] == ["float32", "SessionMoved", "SessionMoved"]


@pytest.mark.parametrize("wrong", ["xy", ("a",), ("a", 1, 2), (5, ones()), ("", ones()), {"a": 1}])
async def test_what_is_no_message_ends_the_feed_in_its_turn(connect: Connect, twin: Twin, wrong: Any) -> None:
    client, seen = await connect(), list[Any]()
    with pytest.raises((TypeError, ValueError), match="expected"):
        await twin.each(seen.append, client.feed, "sum", [("a", ones()), wrong, ("b", ones())])
    assert [id for id, _ in seen] == ["a"]


async def test_an_unknown_model_takes_no_message(connect: Connect, twin: Twin) -> None:
    client, source = await connect(), iter(messages(1, 1))
    for model, kind in (("nope", errors.ModelNotFound), ("double", errors.Unsupported)):
        with pytest.raises(kind):
            await twin.collect(client.feed, model, source)
    assert len(list(source)) == 1


async def test_left_early_it_lets_its_sessions_go(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect()

    async def leave() -> None:
        feed = client.feed("sum", messages(5, 4))
        if twin.name == "aio":
            await anext(feed)
            await feed.aclose()
        else:
            await asyncio.to_thread(next, feed)
            await asyncio.to_thread(feed.close)

    await leave()
    # Mode "replace" is refused while this client has one of them open.
    session = await twin.call(client.session, "sum", "s4", mode="replace")
    assert (await twin.call(session.step, ones()))[0] == 1


async def test_live_messages_do_not_wait_for_answers_nor_they_for_messages(fake: Fake) -> None:
    async with statestream.aio.connect(fake.address) as client:
        answered = asyncio.Event()

        async def source() -> AsyncIterator[tuple[str, Any]]:
            for message in messages(3, 2):
                yield message
            await answered.wait()
            yield "s0", ones()

        found = []
        async for item in client.feed("sum", source()):
            found.append(item)
            if len(found) == 6:
                answered.set()
        assert by_id(found) == {"s0": [1, 2, 3], "s1": [1, 2], "s2": [1, 2]}


@pytest.mark.parametrize("turns", range(0, 12))
async def test_cancelled_anywhere_it_leaves_nothing(fake: Fake, turns: int) -> None:
    async with statestream.aio.connect(fake.address) as client:

        async def walk() -> None:
            async for _ in client.feed("sum", messages(4, 3), max_sessions=2):
                pass

        task = asyncio.create_task(walk())
        for _ in range(turns * 3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for number in range(4):
            await (await client.session("sum", f"s{number}", mode="replace")).close()


def test_the_room_is_bounded() -> None:
    feeding = Feeding(None, "sum", None, "either", 256, 4, return_errors=False, score=False)  # type: ignore[arg-type]
    assert feeding._most == 4, "there is always a session that can be let go"
