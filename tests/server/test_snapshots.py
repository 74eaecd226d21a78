"""Snapshots that users keep: a round trip, and that no damage goes unnoticed."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from statestream import errors
from statestream_server.models.rows import Column
from statestream_server.sessions.admin import snapshots
from statestream_server.sessions.admin.snapshots import Snapshot

COLUMNS = [
    Column("h", np.dtype("<f4"), (2, 3)),
    Column("flags", np.dtype("?"), (3,)),
    Column("count", np.dtype("<i8"), ()),
    Column("feedback:y", np.dtype("<f2"), (1,)),
]
DIGEST = "ab" * 32


def made(seed: int = 0, position: int = 1234) -> Snapshot:
    rng = np.random.default_rng(seed)
    values = [np.asarray(rng.standard_normal(c.shape) * 5).astype(c.dtype) for c in COLUMNS]
    return Snapshot("sunspots", DIGEST, position, values)


def same(one: Snapshot, other: Snapshot) -> bool:
    values = zip(one.values, other.values, strict=True)
    return (one.digest, one.position) == (other.digest, other.position) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in values
    )


@given(st.integers(0, 2**32), st.integers(0, 2**51 - 1))
def test_what_was_written_is_read(seed: int, position: int) -> None:
    snapshot = made(seed, position)
    found = snapshots.loads(snapshots.dumps(snapshot, COLUMNS), COLUMNS, DIGEST)
    assert same(found, snapshot)
    assert found.model == "sunspots"


@pytest.mark.parametrize("flip", [1, 4, 0x20, 0x80, 0xFF])
def test_a_damaged_byte_is_refused_or_harmless(flip: int) -> None:
    """Whichever byte changes: an error, or the very same session (its model's name is for people)."""
    snapshot = made()
    data = snapshots.dumps(snapshot, COLUMNS)
    refused = 0
    for at in range(len(data)):
        damaged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        try:
            found = snapshots.loads(damaged, COLUMNS, DIGEST)
        except (errors.SnapshotInvalid, errors.ModelChanged):
            refused += 1
        else:
            assert same(found, snapshot), f"byte {at} of {len(data)}: {data[max(at - 20, 0) : at + 20]!r}"
    assert refused > len(data) * 3 // 4


def test_every_cut_is_refused() -> None:
    data = snapshots.dumps(made(), COLUMNS)
    for length in range(len(data)):
        with pytest.raises(errors.SnapshotInvalid):
            snapshots.loads(data[:length], COLUMNS, DIGEST)


@given(st.binary(max_size=200))
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(errors.SnapshotInvalid):
        snapshots.loads(data, COLUMNS, DIGEST)
    with pytest.raises(errors.SnapshotInvalid):
        snapshots.read_metadata(data)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_metadata_of_any_shape_is_refused(value: object) -> None:
    """A header that is JSON but no snapshot's."""
    for header in (value, {"__metadata__": value}, {"__metadata__": {"format": value}}):
        text = json.dumps(header).encode()
        with pytest.raises(errors.SnapshotInvalid):
            snapshots.read_metadata(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize("position", ["-1", "1.5", "x", "", "9" * 40, "²", "٣"])
def test_positions_that_are_no_positions_are_refused(position: str) -> None:
    """Somebody edited the position: it must be a number that fits."""
    data = snapshots.dumps(made(), COLUMNS)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["position"] = position
    text = json.dumps(header).encode()
    edited = struct.pack("<Q", len(text)) + text + data[8 + length :]
    with pytest.raises(errors.SnapshotInvalid):
        snapshots.loads(edited, COLUMNS, DIGEST)


def test_a_position_beyond_all_positions_is_refused() -> None:
    """Even with the right checksum: no store could keep it."""
    for position in (2**51, 2**63):
        with pytest.raises(errors.SnapshotInvalid, match=f"position {position}; expected less than"):
            snapshots.loads(snapshots.dumps(made(position=position), COLUMNS), COLUMNS, DIGEST)


def test_another_model_is_told_apart() -> None:
    with pytest.raises(errors.ModelChanged, match=r"ababab"):
        snapshots.loads(snapshots.dumps(made(), COLUMNS), COLUMNS, "cd" * 32)


def test_it_is_a_safetensors_file() -> None:
    """Users can look into it with other tools."""
    tensors = load(snapshots.dumps(made(), COLUMNS))
    assert sorted(tensors) == sorted(column.name for column in COLUMNS)
    np.testing.assert_array_equal(tensors["h"], made().values[0])
