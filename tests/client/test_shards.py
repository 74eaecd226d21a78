"""Shards: whose a session is, and how a pool's rows are divided and put together."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream.core import Lane, OpenTicket, PoolTicket, StreamCore
from statestream.parts import Division, Part, merge, opened
from statestream.settings import Settings
from statestream.shards import Shards, make_core, routes, shard_of
from tests.client.world import FEATURES, ones

SHARDS = 4
LANE = Lane("sum", 1, ("x",), ("float32",), ((FEATURES,),), 4 * FEATURES)


class Idle:
    """A link that does nothing."""

    def __init__(self) -> None:
        self.core: StreamCore = make_core(Settings())

    def do(self, operation: Callable[[], object]) -> None:
        """Drops it."""

    def soon(self, operation: Callable[[], object], *, at_once: bool) -> None:
        """Drops it."""


LINKS = [Idle() for _ in range(SHARDS)]


def test_the_shard_of_a_session_is_the_same_in_every_process_and_release() -> None:
    # A change moves every session of everybody to another shard: take these numbers for a stored format.
    assert [shard_of("sunspots", f"station-{n}", 4) for n in range(12)] == [0, 3, 1, 1, 3, 0, 0, 3, 2, 2, 2, 0]
    counts = np.bincount([shard_of("sum", f"s{n:06}", 8) for n in range(8000)])
    assert counts.min() > 850


@given(ids=st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=40), count=st.integers(1, 6))
def test_ids_are_divided_among_the_links_without_rest(ids: list[str], count: int) -> None:
    shards = Shards(LINKS[:count])
    divided = shards.divide("sum", ids)
    assert sorted(row for _, rows in divided for row in rows.tolist()) == list(range(len(ids)))
    for link, rows in divided:
        assert all(shards.of("sum", ids[row]) is link for row in rows.tolist())
        assert shards.of("sum", shards.beside("sum", link)) is link
    assert divided


def test_routes_have_keys_of_their_own_and_start_at_different_addresses() -> None:
    one = routes("a:1,b:1", Settings(route_key="fleet"))
    assert [(route.addresses, route.key, route.label) for route in one] == [(("a:1", "b:1"), "fleet", "")]
    three = routes("a:1,b:1", Settings(route_key="fleet", shards=3))
    assert [route.key for route in three] == ["fleet-0", "fleet-1", "fleet-2"]
    assert [route.addresses for route in three] == [("a:1", "b:1"), ("b:1", "a:1"), ("a:1", "b:1")]
    assert "shard 2 of 3" in three[2].label
    free = routes("a:1", Settings(shards=3))
    assert len({uuid.UUID(route.key) for route in free}) == 3
    with pytest.raises(ValueError, match="shards is 0"):
        Settings(shards=0)


def test_shards_share_the_replay_buffer() -> None:
    assert make_core(Settings(shards=4, replay_buffer_bytes=4000)).buffer.limit == 1000


@given(st.data())
def test_a_step_in_shares_gives_what_the_whole_one_gives(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    owners = np.array(data.draw(st.lists(st.integers(0, SHARDS - 1), min_size=count, max_size=count)))
    parts = [Part(LINKS[n], np.flatnonzero(owners == n), 7 + np.flatnonzero(owners == n)) for n in range(SHARDS)]
    rows = np.array(data.draw(st.permutations(range(count))))[: data.draw(st.integers(1, count))]
    bad = set(data.draw(st.lists(st.sampled_from(rows.tolist()), max_size=3)))
    steps = data.draw(st.integers(1, 3))
    lengths: Any = steps
    if data.draw(st.booleans()):
        lengths = np.array(data.draw(st.lists(st.integers(0, steps), min_size=len(rows), max_size=len(rows))))
    x = np.arange(len(rows) * steps * FEATURES, dtype=np.float32).reshape(len(rows), steps, FEATURES)

    def answer(ticket: PoolTicket, numbers: np.ndarray) -> None:
        """What a core does: the inputs come back, and rows of bad sessions fail."""
        sent = np.frombuffer(ticket.inputs[0], np.float32).reshape(len(numbers), steps, FEATURES)
        sizes = np.full(len(numbers), steps) if isinstance(ticket.lengths, int) else ticket.lengths
        ticket.left = len(numbers)
        for at, number in enumerate(numbers.tolist()):
            if number in bad:
                ticket.fail(at, errors.BadTensor(f"row {number}"))
            else:
                ticket.deliver(np.array([at]), 0, {"y": sent[at, : sizes[at]]}, int(sizes[at]))

    whole, divided = (PoolTicket(LANE, rows, (x.tobytes(),), lengths, steps) for _ in range(2))
    answer(whole, rows)
    shares = Division(parts).split(divided)
    assert all(len(share.rows) for share in shares)
    for share in shares:
        # Handles were made of row numbers above, and say here which sessions the share is about.
        assert (share.ticket.handles - 7 == rows[share.rows]).all()
        assert {LINKS[owner] for owner in owners[rows[share.rows]]} == {share.link}
        answer(share.ticket, rows[share.rows])
    merge(divided, shares)
    assert divided.done
    assert divided.error is None
    assert {row: str(error) for row, error in divided.errors.items()} == {
        row: str(error) for row, error in whole.errors.items()
    }
    assert divided.value.keys() == whole.value.keys()
    assert all(np.array_equal(divided.value[name], whole.value[name]) for name in whole.value)


def test_a_share_that_failed_fails_its_rows_and_all_of_them_the_step() -> None:
    parts = [Part(LINKS[0], np.array([0, 2]), np.array([0, 1])), Part(LINKS[1], np.array([1]), np.array([0]))]
    for all_fail in (False, True):
        ticket = PoolTicket(LANE, np.arange(3), (ones(3, 1).tobytes(),), 1, 1)
        first, second = shares = Division(parts).split(ticket)
        first.ticket.finish(error=errors.ServerUnavailable("gone"))
        if all_fail:
            second.ticket.finish(error=errors.Closed("closed"))
        else:
            second.ticket.left = 1
            second.ticket.deliver(slice(0, 1), 0, {"y": ones(1)}, 1)
        merge(ticket, shares)
        if all_fail:
            assert isinstance(ticket.error, errors.ServerUnavailable)
        else:
            assert sorted(ticket.errors) == [0, 2]
            assert ticket.value["y"][:, 0, 0].tolist() == [0, 1, 0]


def test_sessions_of_a_shard_that_could_not_be_asked_are_not_open() -> None:
    there = OpenTicket(np.array([5, 6]))
    there.opened(np.array([0, 1]), np.array([True, False]), 3)
    asked = [(LINKS[0], np.array([0, 2])), (LINKS[1], np.array([1]))]
    ticket, parts = opened(3, asked, [there, errors.Closed("closed")])
    assert ticket.handles.tolist() == [5, 0, 6]
    assert ticket.created.tolist() == [True, False, False]
    assert list(ticket.errors) == [1]
    assert [part.rows.tolist() for part in parts] == [[0, 2]]
    with pytest.raises(errors.Closed):
        opened(3, asked, [errors.Closed("a"), errors.Closed("b")])
