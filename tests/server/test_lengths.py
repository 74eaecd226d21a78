"""Lengths against plain lists: where chunks lie in packed arrays, in any order, and what is cut out of them."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from statestream_server.arrays import span
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.replies import ReplyWindow

_STEPS = st.one_of(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.builds(lambda each, count: [each] * count, st.integers(1, 5), st.integers(1, 8)),
)


def chunks_of(steps: list[int]) -> tuple[Lengths, np.ndarray, list[np.ndarray]]:
    lengths = Lengths.of(np.asarray(steps))
    packed = np.arange(sum(steps) * 2).reshape(-1, 2)
    return lengths, packed, np.split(packed, np.cumsum(steps)[:-1])


@given(_STEPS, st.data())
def test_chunks_are_found_in_any_order(steps: list[int], data: st.DataObject) -> None:
    lengths, packed, parts = chunks_of(steps)
    places = data.draw(st.permutations(range(len(steps))))
    places = places[: data.draw(st.integers(1, len(steps)))]
    expected = np.concatenate([parts[place] for place in places])
    assert packed[lengths.index(np.asarray(places))].tolist() == expected.tolist()


@given(_STEPS, st.data())
def test_chunks_in_ascending_order_are_packed(steps: list[int], data: st.DataObject) -> None:
    lengths, packed, parts = chunks_of(steps)
    places = sorted(data.draw(st.sets(st.integers(0, len(steps) - 1), min_size=1)))
    (found,) = lengths.pack([packed], np.asarray(places))
    assert found.tolist() == np.concatenate([parts[place] for place in places]).tolist()
    taken = lengths.take(np.asarray(places))
    assert taken.column.tolist() == [steps[place] for place in places]
    assert taken.total == len(found)
    assert packed[lengths.cut(np.asarray(places))].tolist() == found.tolist()


def test_only_neighbours_are_a_span() -> None:
    assert span(np.asarray([3, 4, 5])) == slice(3, 6)
    assert span(np.asarray([3])) == slice(3, 4)
    assert isinstance(span(np.asarray([3, 5, 6])), np.ndarray)


@example([0, 5, 2, 3, 4, 1, 6, 7, 8], [1] * 9)  # As far from first to last as neighbours are.
@given(st.permutations(range(9)), st.lists(st.integers(1, 3), min_size=9, max_size=9))
def test_replies_of_many_rows_come_in_the_order_of_the_rows(order: list[int], steps: list[int]) -> None:
    """Whatever the order in which the log has them."""
    window, rows = ReplyWindow(), np.arange(9)
    window.grow(9)
    lengths, packed, parts = chunks_of(steps)
    starts = np.zeros(9, np.uint64)
    window.append(rows, starts, starts + lengths.column.astype(np.uint64), lengths, [packed], digests=starts)
    entries = window.lookup(np.asarray(order), starts)
    found, (outputs,) = window.outputs(entries)
    assert found.column.tolist() == [steps[row] for row in order]
    assert outputs.tolist() == np.concatenate([parts[row] for row in order]).tolist()
