"""One id in one client: whoever asks for an open session joins it, and the last who leaves lets it go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

import statestream
from statestream import aio, errors
from statestream.core import Group, OpenTicket, StreamCore
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.wire import Wire, error_of
from tests.client.world import FEATURES, MODEL, World, ones

EITHER, CREATE, RESUME = pb.OPEN_MODE_EITHER, pb.OPEN_MODE_CREATE, pb.OPEN_MODE_RESUME
MODES = [pb.DURABILITY_MODE_NONE, pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]


def ask(wire: Wire, *ids: str, mode: pb.OpenMode = EITHER, version: int = 0) -> OpenTicket:
    return wire.core.open(Group(MODEL, version, False), list(ids), mode)


def left(wire: Wire) -> list[int]:
    """Handles that are in use."""
    table = wire.core.table
    return np.flatnonzero(table.state[: table.size]).tolist()


# ── the core ───────────────────────────────────────────────────────────────────────────────────


def test_opens_of_one_id_are_one_claim_and_their_steps_have_one_order(wire: Wire) -> None:
    first, second = ask(wire, "a"), ask(wire, "a")
    wire.run()
    third = ask(wire, "b", "a", "c")
    wire.run()
    assert wire.world.frames == ["open", "open"]
    assert first.handles[0] == second.handles[0] == third.handles[1]
    assert [first.created[0], second.created[0], *third.created] == [True, False, True, False, True]
    assert set(third.versions.tolist()) == {1}
    steps = [wire.step(int(ticket.handles[0]), ones(1)) for ticket in (first, second, first)]
    steps.append(wire.step(int(third.handles[1]), ones(1)))
    wire.run()
    assert [float(step.value[0, 0]) for step in steps] == [1, 2, 3, 4]


def test_the_last_who_leaves_lets_it_go_and_who_left_needs_no_answer(wire: Wire) -> None:
    first, second = ask(wire, "a"), ask(wire, "a")
    wire.run()
    handles = first.handles
    assert wire.core.close(handles, delete=False).done
    step = wire.step(int(second.handles[0]), ones(1))
    wire.run()
    assert step.value[0, 0] == 1
    assert "close" not in wire.world.frames
    close = wire.core.close(handles, delete=False)
    wire.run()
    assert close.done
    assert wire.world.frames[-1] == "close"
    assert left(wire) == []
    assert wire.core.table.names == {MODEL: {}}


def test_a_delete_ends_it_for_all_and_the_others_hear_why(wire: Wire) -> None:
    first, second, third = ask(wire, "a"), ask(wire, "a"), ask(wire, "a")
    wire.run()
    (handle,) = first.handles.tolist()
    before = wire.step(handle, ones(1))
    delete = wire.core.close(first.handles, delete=True)
    behind = wire.step(handle, ones(1))
    reopened = ask(wire, "a", mode=CREATE)
    joined = wire.core.close(second.handles, delete=False)
    wire.run()
    assert before.value[0, 0] == 1
    assert delete.done
    assert joined.done
    assert not delete.errors
    for late in (behind, wire.step(handle, ones(1))):
        assert isinstance(late.error, errors.Closed)
        assert "deleted by another caller" in late.error.message
    flush = wire.core.flush(third.handles)
    assert isinstance(flush.errors[handle], errors.Closed)
    reset = wire.reset(third.handles)
    assert isinstance(error_of(reset), errors.Closed)
    # The next session of that id is another one, and has another handle.
    assert reopened.created[0]
    assert reopened.handles[0] != handle
    assert wire.core.close(third.handles, delete=True).done
    assert left(wire) == reopened.handles.tolist()


@pytest.mark.parametrize("delete", [False, True])
def test_an_open_behind_a_close_waits_for_it(wire: Wire, delete: bool) -> None:
    (handle,) = wire.open("a")
    wire.step(handle, ones(1))
    wire.run()
    wire.core.close(np.array([handle]), delete=delete)
    tickets = [ask(wire, "a"), ask(wire, "a")]
    wire.run()
    assert [frame for frame in wire.world.frames if frame in ("open", "close")] == ["open", "close", "open"]
    assert [bool(ticket.created[0]) for ticket in tickets] == [delete, False]
    step = wire.step(int(tickets[1].handles[0]), ones(1))
    wire.run()
    assert step.value[0, 0] == (1 if delete else 2)


def test_what_would_change_an_open_session_is_refused_before_anything_is_opened(wire: Wire) -> None:
    wire.open("a")
    group, values = Group(MODEL, 0, False), {"h": np.ones((2, FEATURES), np.float32)}
    asked: list[Callable[[], OpenTicket]] = [
        lambda: ask(wire, "a", mode=pb.OPEN_MODE_REPLACE),
        lambda: ask(wire, "b", "a", version=2),
        lambda: wire.core.open(group, ["a", "b"], EITHER, values),
        lambda: wire.core.open(Group(MODEL, 2, False), ["a"], EITHER, upgrade=True),
        lambda: wire.core.open(group, ["a"], EITHER, upgrade=True),
    ]
    for make in asked:
        with pytest.raises(ValueError, match="'a' is open in this client") as caught:
            make()
        assert isinstance(caught.value, errors.AlreadyOpen)
    wire.run()
    assert list(wire.world.rows) == ["a"]
    taken = ask(wire, "b", "a", mode=CREATE)
    wire.run()
    assert isinstance(taken.errors[1], errors.SessionExists)
    assert list(taken.errors) == [1]
    assert ask(wire, "a", version=1).done


def test_who_joins_an_open_that_is_refused_hears_the_same_or_asks_in_its_own_way(wire: Wire) -> None:
    leader, alike, other = ask(wire, "a", mode=RESUME), ask(wire, "a", mode=RESUME), ask(wire, "a", mode=CREATE)
    late = ask(wire, "a")
    wire.run()
    assert wire.world.frames == ["open", "open"]
    for ticket in (leader, alike):
        assert isinstance(ticket.errors[0], errors.SessionNotFound)
    assert other.created[0]
    assert late.handles[0] == other.handles[0]
    assert left(wire) == other.handles.tolist()


def test_who_joins_an_open_whose_caller_leaves_asks_anew_where_it_was_put_off(wire: Wire) -> None:
    leader = ask(wire, "a")
    wire.send()
    joiner = ask(wire, "a")
    wire.core.cancel(leader)
    wire.world.unsaid = [errors.Draining("the server is leaving", retry_after=0.1)]
    wire.settle()
    assert not joiner.errors
    assert left(wire) == joiner.handles.tolist()


def test_a_version_that_turns_out_to_be_another_is_refused_to_who_joined(wire: Wire) -> None:
    leader, joiner = ask(wire, "a"), ask(wire, "a", version=2)
    wire.run()
    assert leader.versions[0] == 1
    assert isinstance(joiner.errors[0], errors.AlreadyOpen)


def test_a_session_that_failed_is_opened_anew_beside_whoever_still_has_it() -> None:
    world = World()
    wire, rival = Wire(world), Wire(world, StreamCore(b"2" * 16, 2000))
    wire.connect()
    rival.connect()
    (old,) = wire.open("a")
    rival.open("a")
    lost = wire.step(old, ones(1))
    wire.run()
    # The fence is heard as what it is.
    assert isinstance(lost.error, errors.SessionMoved)
    (new,) = wire.open("a")
    assert new != old
    step = wire.step(new, ones(1))
    reset = wire.reset(np.array([old]))
    wire.run()
    assert step.error is None
    assert isinstance(error_of(reset), errors.SessionMoved)
    assert wire.core.close(np.array([old]), delete=False).errors == {}
    wire.run()
    assert left(wire) == [new]


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("cut", [False, True])
def test_whoever_asked_for_a_session_that_is_restored_meanwhile_is_answered(wire: Wire, steps: int, cut: bool) -> None:
    """An open is on its way, wherever that is, when this client restores the session; both callers hear of it."""
    asked = ask(wire, "a")
    moves = [wire.send, wire.serve, wire.deliver]
    for move in moves[:steps]:
        move()
    restored = wire.core.open(Group(MODEL, 0, False), ["a"], pb.OPEN_MODE_RESUME if steps > 1 else EITHER, anew=True)
    if cut:
        wire.cut()
        wire.connect()
    wire.run()
    assert asked.done
    assert restored.done
    assert not restored.errors
    assert restored.handles[0] != asked.handles[0]
    old, new = wire.step(asked.handles[0], ones(1)), wire.step(restored.handles[0], ones(1))
    wire.run()
    assert isinstance(old.error, errors.SessionMoved)
    assert new.error is None
    wire.core.close(np.array([asked.handles[0]]), delete=False)
    wire.run()
    assert left(wire) == restored.handles.tolist()


def test_a_session_that_ends_with_its_callers_is_deleted_by_the_last_of_them(wire: Wire) -> None:
    (handle,) = wire.open("a", ephemeral=True)
    assert wire.open("a").tolist() == [handle]
    wire.core.close(np.array([handle]), delete=False)
    wire.run()
    assert "a" in wire.world.rows
    wire.core.close(np.array([handle]), delete=False)
    wire.run()
    assert "a" not in wire.world.rows
    assert left(wire) == []


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("cut", [False, True])
def test_an_open_that_nobody_waits_for_any_more_is_let_go_whenever_that_is(wire: Wire, steps: int, cut: bool) -> None:
    ticket = ask(wire, "a", "b")
    moves = [wire.send, wire.serve, wire.deliver]
    for move in moves[:steps]:
        move()
    wire.core.cancel(ticket)
    wire.core.cancel(ticket)
    if cut:
        wire.cut()
        wire.connect()
    wire.settle()
    assert left(wire) == []
    assert wire.stream is not None
    assert wire.stream.bound == {}
    assert not wire.core.busy


def test_who_joined_an_open_keeps_it_when_who_began_it_has_gone(wire: Wire) -> None:
    for steps in range(4):
        first, second = ask(wire, f"s{steps}"), ask(wire, f"s{steps}")
        for move in [wire.send, wire.serve, wire.deliver][:steps]:
            move()
        wire.core.cancel(first)
        wire.settle()
        step = wire.step(int(second.handles[0]), ones(1))
        wire.settle()
        assert step.value[0, 0] == 1


def test_an_open_that_replaces_is_not_refused_for_one_that_was_given_up(wire: Wire) -> None:
    """A time limit around an open, and the same call again: the first is let go before the second is asked for."""
    for steps in range(4):
        first = ask(wire, "a", mode=pb.OPEN_MODE_REPLACE)
        for move in [wire.send, wire.serve, wire.deliver][:steps]:
            move()
        wire.core.cancel(first)
        second = ask(wire, "a", mode=pb.OPEN_MODE_REPLACE)
        wire.settle()
        assert not second.errors
        wire.core.close(second.handles, delete=False)
        wire.settle()
        assert left(wire) == []


# ── both clients ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", MODES)
async def test_callers_who_open_what_is_not_there_yet_get_one_session(twin: Twin, mode: pb.DurabilityMode) -> None:
    """`if id not in d: d[id] = await client.session(...)`, by several at once."""
    fake = Fake(World(mode, window=64, max_steps=16))
    client = await twin.connect(fake.address)
    try:
        for turn in range(8):
            known: dict[str, object] = {}

            async def ask(name: str, known: dict[str, object] = known) -> float:
                if name not in known:
                    known[name] = await twin.call(client.session, "sum", name)
                return float((await twin.call(known[name].step, ones()))[0])  # type: ignore[attr-defined]

            async with asyncio.timeout(30):
                assert sorted(await asyncio.gather(*(ask(f"s{turn}") for _ in range(4)))) == [1, 2, 3, 4]
            assert fake.world.rows[f"s{turn}"].position == 4
    finally:
        await twin.call(client.close)
        fake.stop()


async def test_rows_of_pools_count_and_shards_agree(connect: Connect, twin: Twin, fake: Fake) -> None:
    client = await connect(shards=3)
    ids = [f"s{n}" for n in range(12)]
    pool = await twin.call(client.sessions, "sum", ids=ids)
    one = await twin.call(client.session, "sum", ids[5])
    both = await twin.call(client.sessions, "sum", ids=[ids[5], ids[6], "new"])
    assert (await twin.call(one.step, ones()))[0] == 1
    assert (await twin.call(pool.step, ones(12)))[5, 0] == 2
    assert (await twin.call(both.step, ones(3)))[:, 0].tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match="is open in this client"):
        await twin.call(client.sessions, "sum", ids=["other", ids[5]], mode="replace")
    await twin.call(pool.close)
    assert (await twin.call(one.step, ones()))[0] == 4
    await twin.call(both.delete)
    with pytest.raises(errors.Closed, match="deleted by another caller"):
        await twin.call(one.step, ones())
    await twin.call(one.close)
    assert ids[5] not in fake.world.rows


def test_a_session_that_nobody_has_any_more_is_anybodys(fake: Fake) -> None:
    with statestream.connect(fake.address) as client:
        client.session("sum").step(ones())
        client.session("sum", "a").step(ones())
        assert client.session("sum", "a").step(ones())[0] == 2
        # This waits for a close, and so for what was let go before.
        replaced = client.session("sum", "a", mode="replace")
        assert (replaced.position, replaced.created) == (0, True)
        assert list(fake.world.rows) == ["a"]


async def test_a_session_that_no_task_has_any_more_is_anybodys(fake: Fake) -> None:
    async with aio.connect(fake.address) as client:
        await (await client.session("sum")).step(ones())
        await (await client.session("sum", "a")).step(ones())
        assert (await (await client.session("sum", "a")).step(ones()))[0] == 2
        replaced = await client.session("sum", "a", mode="replace")
        assert (replaced.position, replaced.created) == (0, True)
        assert list(fake.world.rows) == ["a"]


async def test_a_restored_session_takes_the_place_of_the_open_one(connect: Connect, twin: Twin) -> None:
    client = await connect()
    old = await twin.call(client.session, "sum", "a")
    await twin.call(old.step, ones())
    blob = await twin.call(old.snapshot)
    await twin.call(old.step, ones())
    new = await twin.call(client.restore, blob, model="sum", id="a")
    assert (await twin.call(new.step, ones()))[0] == 2
    with pytest.raises(errors.SessionMoved, match="restored"):
        await twin.call(old.step, ones())
    await twin.call(old.close)
    assert (await twin.call(new.step, ones()))[0] == 3
