"""The reply window against a dictionary: what is kept, found, forgotten; and that blocks go with their last reply."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from statestream_server.engine.replies import ReplyWindow

ROWS = 5
_ROWS = st.sets(st.integers(0, ROWS - 1), min_size=1)


class WindowMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.window = ReplyWindow()
        self.window.grow(ROWS)
        self.model: dict[int, dict[int, tuple[int, int, bytes]]] = {row: {} for row in range(ROWS)}
        self.position = dict.fromkeys(range(ROWS), 0)
        self.digests = 0

    @rule(steps=st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 4), min_size=1), gap=st.integers(0, 3))
    def append(self, steps: dict[int, int], gap: int) -> None:
        """Keeps a reply for some rows; their outputs lie anywhere in packed arrays."""
        rows, counts = list(steps), list(steps.values())
        offsets = np.cumsum([gap, *counts])[:-1]
        total = gap + sum(counts) + gap
        outputs = [np.random.default_rng(self.digests).standard_normal((total, 2)), np.arange(total) + self.digests]
        starts = [self.position[row] for row in rows]
        digests = list(range(self.digests, self.digests + len(rows)))
        self.digests += len(rows) + total
        self.window.append(
            np.asarray(rows),
            np.asarray(starts, np.uint64),
            np.asarray(counts),
            np.asarray(digests, np.uint64),
            outputs,
            offsets,
        )
        for row, start, count, digest, offset in zip(rows, starts, counts, digests, offsets, strict=True):
            data = b"".join(array[offset : offset + count].tobytes() for array in outputs)
            self.model[row][start] = (count, digest, data)
            self.position[row] += count

    @rule(rows=_ROWS, back=st.integers(0, 12))
    def acknowledge(self, rows: set[int], back: int) -> None:
        """Forgets what ends at or below a position; one inside a reply keeps it."""
        chosen = sorted(rows)
        acked = [max(self.position[row] - back, 0) for row in chosen]
        self.window.acknowledge(np.asarray(chosen), np.asarray(acked, np.uint64))
        for row, until in zip(chosen, acked, strict=True):
            kept = self.model[row].items()
            self.model[row] = {start: reply for start, reply in kept if start + reply[0] > until}

    @rule(rows=_ROWS)
    def drop(self, rows: set[int]) -> None:
        self.window.drop(np.asarray(sorted(rows)))
        for row in rows:
            self.model[row] = {}

    @rule()
    def grow(self) -> None:
        """Growing keeps what is there."""
        self.window.grow(len(self.window.count) + 1)

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        for row, kept in self.model.items():
            found = self.window.replies(row)
            assert [reply.start for reply in found] == sorted(kept)
            assert int(self.window.count[row]) == len(kept)
            for reply in found:
                data = b"".join(array.tobytes() for array in reply.outputs)
                assert (reply.steps, reply.digest, data) == kept[reply.start]
            for start in range(self.position[row] + 2):
                reply_at = self.window.find(row, start)
                assert (reply_at.digest if reply_at else None) == (kept[start][1] if start in kept else None)
        assert self.window.entries == sum(len(kept) for kept in self.model.values())

    @invariant()
    def rounds_give_every_reply_once(self) -> None:
        rows = np.arange(ROWS)
        seen: dict[int, list[int]] = {row: [] for row in range(ROWS)}
        for places, entries in self.window.rounds(rows):
            starts, _, _ = self.window.columns(entries)
            for place, start in zip(places.tolist(), starts.tolist(), strict=True):
                seen[place].append(start)
            grouped = [index for at, _, _ in self.window.by_block(entries) for index in at.tolist()]
            assert sorted(grouped) == list(range(len(entries)))
        assert seen == {row: sorted(kept) for row, kept in self.model.items()}

    @invariant()
    def keeps_no_outputs_that_nobody_needs(self) -> None:
        assert len(self.window._blocks) <= self.window.entries


TestReplyWindow = WindowMachine.TestCase
TestReplyWindow.settings = settings(max_examples=50, stateful_step_count=30)


def test_entries_are_used_again() -> None:
    """Ten thousand replies, acknowledged one after the other, need room for a few."""
    window = ReplyWindow()
    window.grow(4)
    one = np.asarray([2])
    for start in range(10_000):
        at = np.asarray([start], np.uint64)
        window.append(one, at, np.asarray([1]), at, [np.zeros((1, 3))], np.zeros(1, np.int64))
        window.acknowledge(one, at)
    assert window.entries == 1
    assert len(window._start) == 1024
