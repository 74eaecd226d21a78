"""Snapshots: a session as a safetensors file that its owner may keep. docs/snapshots.md describes the format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors import deserialize as read_safetensors
from safetensors.numpy import save as write_safetensors

from statestream.contract import errors
from statestream.contract.tensors import MAX_CURSOR_BYTES
from statestream_server.arrays import Array
from statestream_server.models.rows import Column
from statestream_server.stores.rules import CLAIM_LIMIT

FORMAT: Final = "statestream-snapshot-1"
"""The format written and read; CONTRIBUTING.md says what to do when it changes."""
_HEADER_BYTES: Final = 1 << 20
_POSITION_LIMIT: Final = CLAIM_LIMIT >> 1
"""A session that no store could keep would hold up the records of all others. It must have steps to go, too."""


class Snapshot(NamedTuple):
    """A session that was written out.

    Attributes:
        model: The model's name; for people, a restore may use another.
        digest: The model's digest.
        position: Steps applied.
        values: One array for every column of the slab, without the row axis.
        origin: The position behind its last reset.
        cursor: The caller's, b"" for none.
        tenant: Whose session it was.
    """

    model: str
    digest: str
    position: int
    values: Sequence[Array]
    origin: int = 0
    cursor: bytes = b""
    tenant: str = ""


def dumps(snapshot: Snapshot, columns: Sequence[Column]) -> bytes:
    """Writes a snapshot; sparse columns are in it where they have something."""
    tensors = {
        column.name: np.ascontiguousarray(value)
        for column, value in zip(columns, snapshot.values, strict=True)
        if value.any() or not column.sparse
    }
    metadata = {
        "format": FORMAT,
        "model": snapshot.model,
        "digest": snapshot.digest,
        "position": str(snapshot.position),
        "checksum": _checksum(snapshot.position, tensors, snapshot.origin, snapshot.cursor, snapshot.tenant),
    }
    if snapshot.origin:
        metadata["origin"] = str(snapshot.origin)
    if snapshot.cursor:
        metadata["cursor"] = snapshot.cursor.hex()
    if snapshot.tenant:
        metadata["tenant"] = snapshot.tenant
    return bytes(write_safetensors(tensors, metadata))


def loads(data: bytes, columns: Sequence[Column], digest: str, *, moving: bool = False) -> Snapshot:
    """Reads a snapshot for the model of that digest.

    Args:
        data: What `dumps` wrote.
        columns: The model's.
        digest: The model's.
        moving: Whether the snapshot may be of another model whose columns are the same.

    Raises:
        SnapshotInvalid: It is damaged, or no snapshot.
        ModelChanged: It is of another model.
    """
    metadata = read_metadata(data)
    if metadata["digest"] != digest and moving:
        _check_columns(data, columns)
    elif metadata["digest"] != digest:
        raise errors.ModelChanged(
            f"the snapshot is of a model with digest {metadata['digest'][:12]}…, this one has"
            f" {digest[:12]}…;"
            " restore it where that version is served, or with upgrade where the states are the same"
        )
    try:
        raw = dict(read_safetensors(data))  # type: ignore[no-untyped-call]
        tensors = {
            column.name: np.frombuffer(raw[column.name]["data"], column.dtype).reshape(column.shape)
            for column in columns
            if column.name in raw or not column.sparse
        }
    except (SafetensorError, KeyError, ValueError) as error:
        raise errors.SnapshotInvalid(f"the snapshot is damaged: {error}") from error
    position = int(metadata["position"])
    origin, cursor = _history(metadata, position)
    tenant = metadata.get("tenant", "")
    if _checksum(position, tensors, origin, cursor, tenant) != metadata["checksum"]:
        raise errors.SnapshotInvalid("the snapshot is damaged: its checksum does not match")
    values = [tensors.get(column.name, np.zeros(column.shape, column.dtype)) for column in columns]
    return Snapshot(metadata["model"], digest, position, values, origin, cursor, tenant)


def _history(metadata: dict[str, str], position: int) -> tuple[int, bytes]:
    """The origin and the cursor of a session, where it has them.

    Raises:
        SnapshotInvalid: They are none.
    """
    try:
        origin, cursor = int(metadata.get("origin", "0")), bytes.fromhex(metadata.get("cursor", ""))
    except (ValueError, TypeError) as error:
        raise errors.SnapshotInvalid("the snapshot is damaged: its origin or its cursor is none") from error
    if not 0 <= origin <= position or len(cursor) > MAX_CURSOR_BYTES:
        raise errors.SnapshotInvalid("the snapshot is damaged: no session has its origin, or its cursor")
    return origin, cursor


def read_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a snapshot: format, model, digest, position, checksum.

    Raises:
        SnapshotInvalid: It is damaged, or no snapshot.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        if length > len(data) - 8 or length > _HEADER_BYTES:
            raise ValueError("the header is longer than that of any snapshot")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        given = metadata["format"]
        texts = all(isinstance(metadata.get(name), str) for name in ("model", "digest", "position", "checksum"))
        texts = texts and isinstance(metadata.get("tenant", ""), str)
        complete = texts and metadata["position"].isdecimal()
        position = int(metadata["position"]) if complete else 0
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise errors.SnapshotInvalid(f"these {len(data)} bytes are no snapshot of a session") from error
    if given == FORMAT and not complete:
        raise errors.SnapshotInvalid("the snapshot's header has no model, digest, position and checksum")
    if given != FORMAT:
        raise errors.SnapshotInvalid(
            f"the snapshot is of format {errors.quoted(str(given))}; this release reads {FORMAT!r}"
        )
    if position >= _POSITION_LIMIT:
        raise errors.SnapshotInvalid(f"the snapshot is of position {position}; expected less than {_POSITION_LIMIT}")
    return dict(metadata)


def _check_columns(data: bytes, columns: Sequence[Column]) -> None:
    """Checks that a snapshot's tensors are the columns of a model, whatever its weights.

    Raises:
        ModelChanged: They are not; names the first that differs.
        SnapshotInvalid: They cannot be read.
    """
    try:
        came = {name: (tensor["dtype"], list(tensor["shape"])) for name, tensor in read_safetensors(data)}  # type: ignore[no-untyped-call]
    except (SafetensorError, KeyError, ValueError) as error:
        raise errors.SnapshotInvalid(f"the snapshot is damaged: {error}") from error
    zeros = {column.name: np.zeros(column.shape, column.dtype) for column in columns}
    expected = {
        name: (tensor["dtype"], list(tensor["shape"]))
        for name, tensor in read_safetensors(write_safetensors(zeros))  # type: ignore[no-untyped-call]
    }
    for name in {column.name for column in columns if column.sparse} - {*came}:
        del expected[name]
    for name in [*expected, *came]:
        if came.get(name) != expected.get(name):
            shown = [f"{found[0]}{found[1]}" if found else "nothing" for found in (came.get(name), expected.get(name))]
            raise errors.ModelChanged(
                f"the snapshot is of a version that keeps another state: {name!r} came as {shown[0]}, expected is"
                f" {shown[1]}; restore it where its own version is served",
                metadata={"column": name, "came": shown[0], "expected": shown[1]},
            )


def _checksum(position: int, tensors: dict[str, Array], origin: int, cursor: bytes, tenant: str = "") -> str:
    digest = hashlib.sha256(str(position).encode())
    if origin or cursor:
        digest.update(f" {origin} {cursor.hex()}".encode())
    if tenant:
        digest.update(f" of {tenant}".encode(errors="replace"))
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
