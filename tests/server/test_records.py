"""Records of sessions: what was written is read; damage and other models are told apart."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statestream import errors
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.replies import ReplyWindow
from statestream_server.models.rows import Column
from statestream_server.sessions import records
from statestream_server.sessions.layouts import Layout
from statestream_server.upkeep.checking import _replies_fit

LAYOUT = Layout(
    model=bytes(range(16)),
    fingerprint=2**63 + 7,
    columns=[
        Column("h", np.dtype("<f4"), (2, 3)),
        Column("seen", np.dtype("<i8"), ()),
        Column("mask", np.dtype("?"), (5,)),
    ],
    outputs=[Column("y", np.dtype("<f4"), (2,)), Column("best", np.dtype("<i8"), ())],
)


@dataclasses.dataclass
class World:
    """Rows with values and kept replies."""

    values: list[np.ndarray]
    acked: np.ndarray
    requests: np.ndarray
    window: ReplyWindow
    rows: np.ndarray
    kept: list[list[tuple[int, int, int, list[np.ndarray]]]]

    def encode(self) -> list[bytes]:
        return [*records.encode(LAYOUT, self.values, self.acked, self.requests, self.window, self.rows)]


def world(seed: int, replies: list[list[int]]) -> World:
    """As many rows as `replies` has lists; each list has the steps of one row's kept replies."""
    rng, count = np.random.default_rng(seed), len(replies)
    window, rows = ReplyWindow(), rng.permutation(count + 3)[:count]
    window.grow(count + 3)
    kept: list[list[tuple[int, int, int, list[np.ndarray]]]] = [[] for _ in replies]
    position = rng.integers(0, 1000, count)
    for turn in range(max(map(len, replies), default=0)):
        some = [index for index, lengths in enumerate(replies) if len(lengths) > turn]
        steps = np.asarray([replies[index][turn] for index in some])
        offsets, total = np.cumsum(steps) - steps, int(steps.sum())
        outputs = [rng.standard_normal((total, 2)).astype("<f4"), rng.integers(0, 99, total)]
        digests = rng.integers(0, 2**64, len(some), np.uint64)
        starts, lengths = position[some].astype(np.uint64), Lengths.of(steps)
        window.append(rows[some], starts, starts + steps.astype(np.uint64), lengths, outputs, digests=digests)
        for index, offset, length, digest in zip(some, offsets, steps, digests, strict=True):
            mine = [array[offset : offset + length] for array in outputs]
            kept[index].append((int(position[index]), int(length), int(digest), mine))
            position[index] += length
    values = [
        rng.standard_normal((count, 2, 3)).astype("<f4"),
        rng.integers(-9, 9, count),
        rng.integers(0, 2, (count, 5)).astype(bool),
    ]
    return World(
        values,
        rng.integers(0, 2**63, count).astype(np.uint64),
        rng.integers(0, 2**64, count, np.uint64),
        window,
        rows,
        kept,
    )


_REPLIES = st.lists(st.lists(st.integers(1, 5), max_size=4), max_size=6)


@given(st.integers(0, 2**32), _REPLIES)
@example(0, [])
def test_what_was_written_is_read(seed: int, replies: list[list[int]]) -> None:
    """Values, acknowledged position, request, and every kept reply, uniform or ragged, from any block."""
    made = world(seed, replies)
    blobs = made.encode()
    assert len(blobs) == len(replies)
    for index, blob in enumerate(blobs):
        found = records.decode(LAYOUT, blob, what="it")
        for value, column, source in zip(found.values, LAYOUT.columns, made.values, strict=True):
            assert value.dtype == column.dtype
            np.testing.assert_array_equal(value, source[index])
        assert (found.acked, found.request) == (int(made.acked[index]), int(made.requests[index]))
        assert found.same_bits
        assert [(r.start, r.steps, r.digest) for r in found.replies] == [kept[:3] for kept in made.kept[index]]
        for reply, (_, _, _, outputs) in zip(found.replies, made.kept[index], strict=True):
            assert [array.tobytes() for array in reply.outputs] == [array.tobytes() for array in outputs]


SCORED = Layout(
    model=LAYOUT.model,
    fingerprint=LAYOUT.fingerprint,
    columns=[*LAYOUT.columns, Column("score:past", np.dtype("<f4"), (3, 4), sparse=True)],
    outputs=LAYOUT.outputs,
    scores=[Column("score:p_value", np.dtype("<f4"), ())],
)


@given(st.integers(0, 2**32), _REPLIES, st.sets(st.integers(0, 3)), st.booleans())
def test_scores_stand_behind_the_replies_that_have_some(
    seed: int, replies: list[list[int]], scored: set[int], cursors: bool
) -> None:
    """Beside others that have none; and the past that they go by is there only where it is not empty."""
    made, rng = world(seed, replies), np.random.default_rng(seed)
    for turn, block in enumerate(made.window._blocks):
        if turn in scored:
            block.outputs = [*block.outputs, rng.random(block.lengths.total).astype("<f4")]
    past = np.where(rng.random((len(replies), 1, 1)) < 0.5, rng.random((len(replies), 3, 4)), 0).astype("<f4")
    said = [b"there" * (place % 2) for place in range(len(replies))] if cursors else []
    blobs = records.encode(
        SCORED, [*made.values, past], made.acked, made.requests, made.window, made.rows, cursors=said
    )
    plain = made.encode() if not scored else blobs
    for index, blob in enumerate(blobs):
        found = records.decode(SCORED, blob, what="it")
        assert found.values[-1].tobytes() == past[index].tobytes()
        expected = made.window.replies(int(made.rows[index]))
        assert [[a.tobytes() for a in r.outputs] for r in found.replies] == [
            [a.tobytes() for a in r.outputs] for r in expected
        ]
        assert records.encode_stored(SCORED, found) == blob
        header = records.read_header(blob, what="it")
        assert (header.row_bytes == SCORED.row_bytes) == bool(past[index].any())
        rest = len(blob) - records.HEADER_BYTES - header.row_bytes - records.tail_bytes(blob)
        end = made.kept[index][-1][0] + made.kept[index][-1][1] if made.kept[index] else 0
        assert _replies_fit(blob, header, rest, end)
        if not scored and not past[index].any() and not cursors:
            assert len(plain[index]) == len(blob)


@settings(max_examples=20)
@given(st.integers(0, 2**32), _REPLIES.filter(bool), st.integers(1, 255))
def test_every_damaged_byte_is_state_lost(seed: int, replies: list[list[int]], flip: int) -> None:
    """No single byte can change without notice, wherever it is; nor can bytes be missing."""
    blob = world(seed, replies).encode()[0]
    for at in range(len(blob)):
        damaged = blob[:at] + bytes([blob[at] ^ flip]) + blob[at + 1 :]
        with pytest.raises(errors.StateLost):
            records.decode(LAYOUT, damaged, what="it")
    for length in range(len(blob)):
        with pytest.raises(errors.StateLost):
            records.decode(LAYOUT, blob[:length], what="it")


def test_a_record_of_another_model_is_told_apart() -> None:
    blob = world(1, [[2]]).encode()[0]
    with pytest.raises(errors.ModelChanged, match="session 'a'"):
        records.decode(dataclasses.replace(LAYOUT, model=bytes(16)), blob, what="session 'a'")


def test_another_version_with_the_same_columns_reads_what_it_can() -> None:
    """The state always; kept replies where the outputs are the same too. Other columns are refused."""
    made = world(3, [[2, 1], []])
    for blob, values, kept in zip(made.encode(), zip(*made.values, strict=True), made.kept, strict=True):
        newer = dataclasses.replace(LAYOUT, model=bytes(16))
        found = records.decode(newer, blob, what="it", moving=True)
        assert [array.tobytes() for array in found.values] == [np.asarray(value).tobytes() for value in values]
        assert [reply.start for reply in found.replies] == [start for start, *_ in kept]
        other = dataclasses.replace(newer, outputs=[Column("y", np.dtype("<f4"), (9,))])
        found = records.decode(other, blob, what="it", moving=True)
        assert [array.tobytes() for array in found.values] == [np.asarray(value).tobytes() for value in values]
        assert not found.replies
        for columns in (LAYOUT.columns[::-1], LAYOUT.columns[:2], [Column("g", *LAYOUT.columns[0][1:])]):
            with pytest.raises(errors.ModelChanged):
                records.decode(dataclasses.replace(newer, columns=columns), blob, what="it", moving=True)


def test_a_record_of_a_newer_format_is_named_refused_and_not_called_damaged() -> None:
    """Magic and checksum stay where they are in every format."""
    (blob,) = world(1, [[2]]).encode()
    newer = b"SSR7" + blob[8:] + b"and more"
    newer = newer[:4] + zlib.crc32(newer).to_bytes(4, "little") + newer[4:]
    with pytest.raises(
        errors.StoreUnavailable, match=r"session 'a' is of format 7, .* reads format 1; nothing is lost"
    ):
        records.decode(LAYOUT, newer, what="session 'a'")


def test_a_record_of_another_processor_is_read_and_reported() -> None:
    blob = world(1, [[2]]).encode()[0]
    assert not records.decode(dataclasses.replace(LAYOUT, fingerprint=1), blob, what="it").same_bits


def test_a_model_without_outputs_or_states_in_the_row() -> None:
    """Layouts may be small: one column, no reply."""
    layout = Layout(bytes(16), 0, [Column("n", np.dtype("<f8"), ())], [])
    window = ReplyWindow()
    window.grow(1)
    none = np.zeros(1, np.uint64)
    (blob,) = records.encode(layout, [np.asarray([2.5])], none, none, window, np.zeros(1, np.int64))
    assert float(records.decode(layout, blob, what="it").values[0]) == 2.5
