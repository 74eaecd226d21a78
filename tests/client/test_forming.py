"""Replays joined: the same steps at the same positions, in as few chunks as fit, that end where chunks ended."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from statestream.contract.tensors import MAX_CURSOR_BYTES
from statestream.core import Lane, PoolTicket
from statestream.core.blocks import Block
from statestream.core.forming import cut, rejoined
from statestream.core.sinks import DISCARD

LANES = (
    Lane("one", 1, ("x",), ("uint16",), ((),), 2),
    Lane("two", 1, ("a", "b"), ("uint16", "uint32"), ((), (2,)), 10),
)


def make(lane: Lane, chunks: list[tuple[int, int, int]]) -> Block:
    """A block of chunks (handle, start, steps); the inputs of a step are made of its handle and position."""
    handles, starts, lengths = (np.array(column, np.int64) for column in zip(*chunks, strict=True))
    inputs = [b"".join(step(lane, h, s + t)[name] for h, s, n in chunks for t in range(n)) for name in lane.names]
    same = len(set(lengths.tolist())) == 1
    return Block(lane, handles, starts, int(lengths[0]) if same else lengths, tuple(inputs), DISCARD)


def step(lane: Lane, handle: int, position: int) -> dict[str, bytes]:
    values = ([100 * handle + position], [handle, position])
    columns = zip(lane.names, lane.dtypes, values, strict=False)
    return {name: np.array(value, dtype).tobytes() for name, dtype, value in columns}


def chunks_of(block: Block) -> list[tuple[int, int, int]]:
    lengths = (block.ends - block.starts).tolist()
    return list(zip(block.handles.tolist(), block.starts.tolist(), lengths, strict=True))


@given(seed=st.integers(0, 2**32), most=st.integers(1, 12), room=st.integers(20, 400))
def test_replays_are_joined_and_change_nothing_but_the_cut(seed: int, most: int, room: int) -> None:
    """Sessions with chunks of any length, some chunks missing, in both lanes, in blocks of any size."""
    rng = random.Random(seed)
    sent: dict[Lane, dict[tuple[int, int], int]] = {lane: {} for lane in LANES}
    blocks: list[Block] = []
    position = {handle: rng.randrange(5) for handle in range(4)}
    for _ in range(rng.randrange(1, 30)):
        lane = rng.choice(LANES) if rng.random() < 0.3 else LANES[0]
        taken = []
        for handle in rng.sample(range(4), rng.randrange(1, 5)):
            steps = rng.randrange(1, 6)
            if rng.random() < 0.9:
                taken.append((handle, position[handle], steps))
                sent[lane][handle, position[handle]] = steps
            position[handle] += steps
        if taken:
            blocks.append(make(lane, taken))
    joined = rejoined(blocks, most, room)
    for lane in LANES:
        left, mine = dict(sent[lane]), [block for block in joined if block.lane is lane]
        ends = {(handle, start + steps) for (handle, start), steps in left.items()}
        after: dict[int, int] = {}
        for block in mine:
            chunks = chunks_of(block)
            assert len({handle for handle, _, _ in chunks}) == len(chunks)
            assert block.inputs == make(lane, chunks).inputs
            assert len(chunks) == 1 or sum(steps for _, _, steps in chunks) * lane.step_bytes <= room
            for handle, start, steps in chunks:
                assert start >= after.get(handle, 0)
                after[handle] = start + steps
                many = (handle, start) in left and left[handle, start] != steps
                assert not many or steps * lane.step_bytes <= room
                assert not many or steps <= most
                while start < after[handle]:
                    start += left.pop((handle, start))
                assert (handle, start) in ends
                assert start == after[handle]
        assert not left


def test_a_long_replay_of_many_sessions_is_one_chunk_of_each() -> None:
    blocks = [make(LANES[0], [(handle, 3 * n, 3) for handle in range(50)]) for n in range(20)]
    (block,) = rejoined(blocks, 256, 1 << 20)
    assert chunks_of(block) == [(handle, 0, 60) for handle in range(50)]


def test_a_replay_longer_than_a_chunk_may_be_comes_in_rounds() -> None:
    blocks = [make(LANES[0], [(0, 4 * n, 4), (1, 4 * n, 4)][: 2 if n < 3 else 1]) for n in range(7)]
    rounds = [chunks_of(block) for block in rejoined(blocks, 10, 1 << 20)]
    assert rounds == [[(0, 0, 8), (1, 0, 8)], [(0, 8, 8), (1, 8, 4)], [(0, 16, 8)], [(0, 24, 4)]]


def test_nothing_to_replay_is_no_block() -> None:
    assert rejoined([], 256, 1 << 20) == []


def test_frames_with_cursors_stay_as_large_as_others() -> None:
    """A cursor is many times what a small step is, and each is a field: servers take 65,536 of them in a message."""
    count = 70_000
    lane = LANES[0].with_cursors()
    handles, inputs = np.arange(count), (bytes(2 * count),)
    ticket = PoolTicket(lane, handles, inputs, 1, 1, cursors=[bytes(MAX_CURSOR_BYTES)] * count)
    blocks = cut(ticket, np.zeros(count, np.int64), 256, 1 << 20)
    for block in blocks:
        block.sink = DISCARD
    again = rejoined(blocks, 256, 1 << 20)
    for found in (blocks, again):
        assert sum(map(len, found)) == count
        assert all(block.cursors is not None and sum(map(len, block.cursors)) <= 1 << 20 for block in found)
    plain = PoolTicket(lane, handles, inputs, 1, 1, cursors=[b""] * count)
    (block,) = cut(plain, np.zeros(count, np.int64), 256, 1 << 20)
    assert block.cursors is None, "who has no cursors sends none"
