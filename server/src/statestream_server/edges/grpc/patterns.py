"""Patterns: a lone chunk and its reply as bytes, most of which are the same with every step of a model.

What differs is the number of the frame, the handle, the positions and what the tensors hold. Once a chunk was decoded
that is laid out as libraries lay one out, the next ones are compared with that, and no message is made of them: equal
bytes around what differs, which is as long as it was, mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple

import numpy as np

from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.arrays import Array, Positions

LONGEST: Final = 1 << 16
"""Bytes of a chunk that is worth a comparison; decoding a longer one costs little beside its bytes."""
NAMED: Final = 16
"""Bytes of a handle and a position, with the tags before them."""
_NUMBER: Final = 6
"""Bytes of the number of a frame at most, with its tag: beyond 2**35 frames they are decoded."""


class Port(NamedTuple):
    """What one step of an input or output looks like on the wire; -1 in its shape is any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Chunk(NamedTuple):
    """How chunks of one model are laid out that have so many steps, behind the number of their frame.

    Attributes:
        nbytes: Their length.
        split: Cuts one at what differs: what is the same, the handle, the same, a position, and so on in turns.
        same: What is the same in all of them.
        named: Where their handle and position stand, with the tags before these; as in replies.
        acked: Whether they say up to where their sender has the replies.
    """

    nbytes: int
    split: Callable[[bytes, int], tuple[Any, ...]]
    same: tuple[bytes, ...]
    named: int
    acked: bool

    def fits(self, data: bytes) -> bool:
        """Whether a frame is such a chunk."""
        _, at = number(data)
        return len(data) - at == self.nbytes and self.split(data, at)[::2] == self.same


class Reply(NamedTuple):
    """What replies of one model with so many steps have beside what differs, behind the number of their frame.

    Attributes:
        begin: Before the handle.
        steps: Between the position and the durable position.
        tensors: Before what each output holds.
    """

    begin: bytes
    steps: bytes
    tensors: tuple[bytes, ...]


def number(data: bytes) -> tuple[int, int]:
    """The number of the frame with which a message begins, and where that ends; 0 and 0 where it begins otherwise."""
    if len(data) <= _NUMBER or data[0] != 8:
        return 0, 0
    byte = data[1]
    if byte < 128:
        return byte, 2
    frame, at, shift = byte & 127, 2, 7
    while at < _NUMBER:
        byte = data[at]
        at += 1
        frame |= (byte & 127) << shift
        if byte < 128:
            return frame, at
        shift += 7
    return 0, 0


@lru_cache(1024)
def chunk(ports: Sequence[Port], steps: int, *, acked: bool) -> Chunk:
    """The pattern of chunks with these inputs."""
    pieces = [
        (_bytes(pb.ChunkFrame.HANDLES_FIELD_NUMBER, 4), "I"),
        (_bytes(pb.ChunkFrame.POSITIONS_FIELD_NUMBER, 8), "Q"),
    ]
    if acked:
        pieces.append((_bytes(pb.ChunkFrame.ACKED_POSITIONS_FIELD_NUMBER, 8), "Q"))
    between = pb.ChunkFrame(steps=steps).SerializeToString()
    for port in ports:
        pieces.append((between + _tensor(pb.ChunkFrame.INPUTS_FIELD_NUMBER, port, steps), f"{steps * port.nbytes}s"))
        between = b""
    if between:
        pieces.append((between, ""))
    size = Struct("<" + "".join(f"{len(piece)}s{kind}" for piece, kind in pieces)).size
    begin = _bytes(pb.StreamRequest.CHUNK_FIELD_NUMBER, size)
    same = begin + pieces[0][0], *(piece for piece, _ in pieces[1:])
    layout = Struct("<" + "".join(f"{len(piece)}s{kind}" for piece, (_, kind) in zip(same, pieces, strict=True)))
    return Chunk(layout.size, layout.unpack_from, same, len(begin), acked)


@lru_cache(1024)
def reply(ports: Sequence[Port], steps: int) -> Reply:
    """The pattern of replies with these outputs."""
    between = pb.ResultFrame(steps=steps).SerializeToString() + _bytes(pb.ResultFrame.DURABLE_POSITIONS_FIELD_NUMBER, 8)
    tensors = tuple(_tensor(pb.ResultFrame.OUTPUTS_FIELD_NUMBER, port, steps) for port in ports)
    size = NAMED + len(between) + 8 + sum(map(len, tensors)) + sum(steps * port.nbytes for port in ports)
    return Reply(_bytes(pb.StreamResponse.RESULT_FIELD_NUMBER, size), between, tensors)


def _tensor(field: int, port: Port, steps: int) -> bytes:
    """What comes before the bytes of a tensor, the last of its fields."""
    nbytes = steps * port.nbytes
    said = Tensor(name=port.name, dtype=port.dtype, shape=(steps, *port.shape)).SerializeToString()
    if nbytes:
        said += _bytes(Tensor.DATA_FIELD_NUMBER, nbytes)
    return _bytes(field, len(said) + nbytes) + said


def _bytes(field: int, size: int) -> bytes:
    """What comes before so many bytes, at least one, that are a field."""
    return bytes((field << 3 | 2,)) + pb.StreamRequest(frame=size).SerializeToString()[1:]


def echo(frame: int, handle: bytes, position: bytes) -> tuple[bytes, bytes]:
    """What a reply repeats of a chunk: the number of its frame; its handle and position."""
    said = pb.ResultFrame(handles=handle, positions=position)
    return pb.StreamResponse(frame=frame).SerializeToString(), said.SerializeToString()


def read_echo(number: bytes, named: bytes) -> tuple[int, Array, Positions]:
    """The number of a frame, and its handle and position as columns, of what a reply would repeat."""
    said = pb.ResultFrame.FromString(named)
    handle, start = np.frombuffer(said.handles, "<u4"), np.frombuffer(said.positions, "<u8")
    return pb.StreamResponse.FromString(number).frame, handle, start
