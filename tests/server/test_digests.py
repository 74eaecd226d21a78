"""Digests of chunks: the same however they are packed, another for any other bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from statestream_server.engine import digests
from statestream_server.engine.lengths import Lengths

_DTYPES = [np.float32, np.float64, np.int64, np.uint8, np.bool_, np.int16]


@st.composite
def chunks(draw: st.DrawFn) -> list[list[np.ndarray]]:
    """Chunks of 1 to 9 steps with the same two inputs."""
    shapes = draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=2, max_side=4), min_size=1, max_size=2))
    dtypes = [draw(st.sampled_from(_DTYPES)) for _ in shapes]
    steps = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return [
        [(rng.standard_normal((n, *shape)) * 9).astype(d) for shape, d in zip(shapes, dtypes, strict=True)]
        for n in steps
    ]


def packed(parts: list[list[np.ndarray]]) -> np.ndarray:
    steps = np.asarray([len(part[0]) for part in parts])
    inputs = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return digests.of_chunks(Lengths.of(steps), inputs)


@given(chunks(), st.randoms(use_true_random=False))
def test_a_chunk_has_one_digest_in_any_packing(parts: list[list[np.ndarray]], random: Any) -> None:
    """A chunk that comes again, alone or beside others, is known again."""
    alone = [int(packed([part])[0]) for part in parts]
    assert packed(parts).tolist() == alone
    order = list(range(len(parts)))
    random.shuffle(order)
    assert packed([parts[i] for i in order]).tolist() == [alone[i] for i in order]


@given(chunks(), st.data())
def test_any_other_byte_gives_another_digest(parts: list[list[np.ndarray]], data: st.DataObject) -> None:
    part = data.draw(st.sampled_from(parts))
    place = data.draw(st.integers(0, len(part) - 1))
    raw = bytearray(part[place].tobytes())
    at, flip = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(1, 255))
    raw[at] ^= flip
    changed = list(part)
    changed[place] = np.frombuffer(raw, np.uint8).view(part[place].dtype).reshape(part[place].shape)
    assert int(packed([part])[0]) != int(packed([changed])[0])


@given(chunks())
def test_steps_count(parts: list[list[np.ndarray]]) -> None:
    """A chunk that is the beginning of another has another digest, and so has one whose steps changed places."""
    part = parts[0]
    if len(part[0]) > 1:
        assert packed([[array[:-1] for array in part]])[0] != packed([part])[0]
    swapped = [array[::-1] for array in part]
    if any(a.tobytes() != np.ascontiguousarray(b).tobytes() for a, b in zip(part, swapped, strict=True)):
        assert packed([swapped])[0] != packed([part])[0]


def test_zeros_of_different_length_differ() -> None:
    found = {int(packed([[np.zeros((steps, 3), np.float32)]])[0]) for steps in range(1, 257)}
    assert len(found) == 256


@pytest.mark.parametrize("text", ["", "a", "ä" * 300])
def test_request_ids_are_never_zero(text: str) -> None:
    """Zero stands for no request id."""
    assert 0 < digests.of_text(text) < 2**64
    assert digests.of_text(text) == digests.of_text(text)
    assert digests.of_text(text) != digests.of_text(text + "x")
