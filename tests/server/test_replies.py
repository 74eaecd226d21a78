"""The reply window against a dictionary: what is kept, found, forgotten, swept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from statestream_server.engine import digests
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.replies import NONE, ReplyWindow

ROWS = 5
_ROWS = st.sets(st.integers(0, ROWS - 1), min_size=1)


class WindowMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.window = ReplyWindow()
        self.window.grow(ROWS)
        self.model: dict[int, dict[int, tuple[int, int, bytes]]] = {row: {} for row in range(ROWS)}
        self.position = dict.fromkeys(range(ROWS), 0)
        self.number = 0

    @rule(
        steps=st.dictionaries(st.integers(0, ROWS - 1), st.integers(1, 4), min_size=1),
        width=st.integers(3, 4),
        by_inputs=st.booleans(),
    )
    def append(self, steps: dict[int, int], *, width: int, by_inputs: bool) -> None:
        """Keeps a reply for some rows, known by their inputs or by their digests."""
        rows, lengths = list(steps), Lengths.of(np.asarray(list(steps.values())))
        self.number += 1
        rng = np.random.default_rng(self.number)
        outputs = [rng.standard_normal((lengths.total, 2)), rng.integers(0, 9, lengths.total)]
        inputs = [rng.standard_normal((lengths.total, width)).astype(np.float32)]
        digested = digests.of_chunks(lengths, inputs)
        starts = np.asarray([self.position[row] for row in rows], np.uint64)
        self.window.append(
            np.asarray(rows),
            starts,
            starts + lengths.column.astype(np.uint64),
            lengths,
            outputs,
            inputs=inputs if by_inputs else (),
            digests=None if by_inputs else digested,
        )
        for place, (row, count) in enumerate(steps.items()):
            offset = int(lengths.offsets[place])
            data = b"".join(array[offset : offset + count].tobytes() for array in outputs)
            self.model[row][self.position[row]] = (count, int(digested[place]), data)
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
            self.position[row] = 0

    @rule()
    def sweep(self) -> None:
        """Sweeping changes nothing that can be seen; it leaves little that nobody needs."""
        for _ in range(3):
            self.window._sweep()

    @rule()
    def grow(self) -> None:
        """Growing keeps what is there."""
        self.window.grow(len(self.window.acked) + 1)

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        for row, kept in self.model.items():
            found = self.window.replies(row)
            assert [reply.start for reply in found] == sorted(kept)
            assert self.window.counts(np.asarray([row])).tolist() == [len(kept)]
            for reply in found:
                data = b"".join(array.tobytes() for array in reply.outputs)
                assert (reply.steps, reply.digest, data) == kept[reply.start]
            for start in range(self.position[row] + 2):
                entries = self.window.lookup(np.asarray([row]), np.asarray([start], np.uint64))
                assert (entries[0] != NONE) == (start in kept)
        assert self.window.entries == sum(len(kept) for kept in self.model.values())

    @invariant()
    def outputs_of_many_are_found_at_once(self) -> None:
        """Rows in any order, each with one of its replies."""
        wanted = {row: sorted(kept)[self.number % len(kept)] for row, kept in reversed(self.model.items()) if kept}
        if not wanted:
            return
        rows, starts = np.asarray(list(wanted)), np.asarray(list(wanted.values()), np.uint64)
        entries = self.window.lookup(rows, starts)
        lengths, outputs = self.window.outputs(entries)
        begun, steps, digested = self.window.columns(entries)
        assert begun.tolist() == starts.tolist()
        for place, (row, start) in enumerate(wanted.items()):
            cut = slice(int(lengths.offsets[place]), int(lengths.offsets[place] + lengths.column[place]))
            data = b"".join(array[cut].tobytes() for array in outputs)
            assert (int(steps[place]), int(digested[place]), data) == self.model[row][start]

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


TestReplyWindow = WindowMachine.TestCase
TestReplyWindow.settings = settings(max_examples=15, stateful_step_count=30)


@pytest.mark.slow
def test_what_holds_holds_for_longer() -> None:
    run_state_machine_as_test(WindowMachine, settings=settings(max_examples=60, stateful_step_count=30))


def _one(window: ReplyWindow, row: int, start: int) -> None:
    at = np.asarray([start], np.uint64)
    window.append(np.asarray([row]), at, at + np.uint64(1), Lengths(1, 1), [np.zeros((1, 3))], digests=at)


def stored(window: ReplyWindow) -> int:
    """Replies in the log, those included that nobody needs and that were not swept yet."""
    return sum(len(block.entries) for block in window._blocks)


def test_what_is_acknowledged_is_swept() -> None:
    """Forty thousand replies, acknowledged one after the other, need room for some hundreds."""
    window = ReplyWindow()
    window.grow(4)
    for start in range(40_000):
        _one(window, 2, start)
        window.acknowledge(np.asarray([2]), np.asarray([start], np.uint64))
    assert window.entries == 1
    assert stored(window) <= 600


def test_survivors_are_swept_too() -> None:
    """Replies that outlived many sweeps go once they are acknowledged; those of idle rows stay, in few blocks."""
    window, idle, busy = ReplyWindow(), np.arange(5000), np.arange(5000, 6000)
    window.grow(6000)
    for row in idle.tolist():
        _one(window, row, 0)
    zeros, ones = np.zeros(1000, np.uint64), np.ones(1000, np.uint64)
    for turn in range(200):
        starts, lengths = zeros + np.uint64(turn), Lengths(1000, 1)
        window.append(busy, starts, starts + ones, lengths, [np.zeros((1000, 3))], inputs=[np.zeros((1000, 1))])
        window.acknowledge(busy, starts)
    assert window.entries == 6000
    assert (window.lookup(idle, np.zeros(5000, np.uint64)) != NONE).all()
    assert len(window._blocks) < 50
    window.acknowledge(idle, np.ones(5000, np.uint64))
    for turn in range(200, 300):
        starts = zeros + np.uint64(turn)
        window.append(
            busy, starts, starts + ones, Lengths(1000, 1), [np.zeros((1000, 3))], inputs=[np.zeros((1000, 1))]
        )
        window.acknowledge(busy, starts)
    assert window.entries == 1000
    assert stored(window) <= 18_000
