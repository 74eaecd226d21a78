"""The handles of a stream against a plain dict, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream_server.edges.grpc.handles import Handles, unknown_places
from statestream_server.sessions.ownership.streams import Sleeper
from statestream_server.stores.base import Key

ROWS = 40
HANDLES = st.one_of(st.integers(0, 60), st.integers(900, 1200), st.sampled_from([2**16, 2**24 - 1, 2**31, 2**32 - 1]))


class Fake:
    """As much of a table as handles ask."""

    def __init__(self, rows: int) -> None:
        self.binding = np.arange(1, rows + 1)


def table(rows: int = ROWS) -> Any:
    return Fake(rows)


def column(handles: list[int]) -> np.ndarray:
    return np.asarray(handles, "<u4")


@pytest.mark.parametrize("handle", [0, 63, 2**16, 2**24 - 1, 2**32 - 1])
def test_what_a_handle_costs_does_not_depend_on_its_number(handle: int) -> None:
    handles, one = Handles(), table()
    handles.bind(column([handle]), one, np.asarray([3]), np.asarray([4]))
    assert handles.one(handle) == (one, 3, 4)
    assert len(handles) == 1
    assert handles.nbytes < 64 << 10


def test_dense_handles_are_columns() -> None:
    handles, one = Handles(), table(100_000)
    for first in range(0, 100_000, 2_000):
        numbers = np.arange(first, first + 2_000)
        handles.bind(numbers.astype("<u4"), one, numbers, numbers + 1)
    assert handles.nbytes < 100_000 * 20 * 2.5
    assert not handles._sparse
    (group,) = handles.resolve(np.arange(100_000, dtype="<u4"))
    assert group.rows.tolist() == list(range(100_000))


@given(st.data())
def test_they_stand_for_what_they_were_bound_to_last(data: st.DataObject) -> None:
    """Whatever is bound, freed, put to sleep and forgotten, in whatever order and under whatever numbers."""
    handles, tables = Handles(), [table(), table()]
    known: dict[int, tuple[int, int]] = {}
    asleep: set[int] = set()
    for _ in range(data.draw(st.integers(1, 12))):
        some = data.draw(st.lists(HANDLES, min_size=1, max_size=8, unique=True))
        action = data.draw(st.sampled_from(["bind", "bind", "free", "sleep", "forget"]))
        if action == "bind":
            number = data.draw(st.integers(0, 1))
            rows = data.draw(st.lists(st.integers(0, ROWS - 1), min_size=len(some), max_size=len(some)))
            handles.bind(column(some), tables[number], np.asarray(rows), np.asarray(rows) + 1)
            known |= {handle: (number, row) for handle, row in zip(some, rows, strict=True)}
            asleep -= set(some)
        elif action == "free":
            handles.free(column(some))
            known = {handle: at for handle, at in known.items() if handle not in some}
            asleep -= set(some)
        elif action == "sleep":
            for handle in [handle for handle in some if handle in known]:
                handles.sleep(handle, Sleeper(Key("", "m", "s"), 1))
                del known[handle]
                asleep.add(handle)
        else:
            number = data.draw(st.integers(0, 1))
            handles.forget(tables[number])
            known = {handle: at for handle, at in known.items() if at[0] != number}
    asked = data.draw(st.lists(HANDLES, max_size=12, unique=True))
    groups = handles.resolve(column(asked))
    found = {
        asked[place]: (tables.index(group.table), row)
        for group in groups
        for place, row in zip(group.places.tolist(), group.rows.tolist(), strict=True)
    }
    assert found == {handle: known[handle] for handle in asked if handle in known}
    unknown = [asked[place] for place in unknown_places(groups, len(asked)).tolist()]
    assert sorted(unknown) == sorted(set(asked) - known.keys())
    for handle in asked:
        one = handles.one(handle)
        assert (one and (tables.index(one[0]), one[1])) == known.get(handle)
    assert len(handles) == len(known) + len(asleep)
