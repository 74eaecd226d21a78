"""Patterns: a lone chunk and its reply as bytes, most of which are the same with every step of a model.

What differs is the number of the frame, the handle, the positions and what the tensors hold. Once a chunk was decoded
that is laid out as libraries lay one out, the next ones are compared with that, and no message is made of them: equal
bytes around what differs, which is as long as it was, mean the same. protobuf itself makes what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import Message

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

    def tensor(self, steps: int) -> Tensor:
        """So many steps of zeros."""
        return Tensor(name=self.name, dtype=self.dtype, shape=(steps, *self.shape), data=bytes(steps * self.nbytes))


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
    number = pb.ChunkFrame(handles=bytes(4)), pb.ChunkFrame(positions=bytes(8))
    pieces = [(_before(number[0], 4), "I"), (_before(number[1], 8), "Q")]
    if acked:
        pieces.append((_before(pb.ChunkFrame(acked_positions=bytes(8)), 8), "Q"))
    between = pb.ChunkFrame(steps=steps).SerializeToString()
    for port in ports:
        nbytes = steps * port.nbytes
        pieces.append((between + _before(pb.ChunkFrame(inputs=[port.tensor(steps)]), nbytes), f"{nbytes}s"))
        between = b""
    if between:
        pieces.append((between, ""))
    whole = pb.ChunkFrame(handles=bytes(4), positions=bytes(8), steps=steps, inputs=[p.tensor(steps) for p in ports])
    if acked:
        whole.acked_positions = bytes(8)
    begin = _before(pb.StreamRequest(chunk=whole), whole.ByteSize())
    same = begin + pieces[0][0], *(piece for piece, _ in pieces[1:])
    layout = Struct("<" + "".join(f"{len(piece)}s{kind}" for piece, (_, kind) in zip(same, pieces, strict=True)))
    return Chunk(layout.size, layout.unpack_from, same, len(begin), acked)


@lru_cache(1024)
def reply(ports: Sequence[Port], steps: int) -> Reply:
    """The pattern of replies with these outputs."""
    whole = pb.ResultFrame(
        handles=bytes(4), positions=bytes(8), steps=steps, durable_positions=bytes(8),
        outputs=[port.tensor(steps) for port in ports],
    )  # fmt: skip
    begin = _before(pb.StreamResponse(result=whole), whole.ByteSize())
    between = _before(pb.ResultFrame(steps=steps, durable_positions=bytes(8)), 8)
    tensors = tuple(_before(pb.ResultFrame(outputs=[port.tensor(steps)]), steps * port.nbytes) for port in ports)
    return Reply(begin, between, tensors)


def echo(frame: int, handle: bytes, position: bytes) -> tuple[bytes, bytes]:
    """What a reply repeats of a chunk: the number of its frame; its handle and position."""
    said = pb.ResultFrame(handles=handle, positions=position)
    return pb.StreamResponse(frame=frame).SerializeToString(), said.SerializeToString()


def read_echo(number: bytes, named: bytes) -> tuple[int, Array, Positions]:
    """The number of a frame, and its handle and position as columns, of what a reply would repeat."""
    said = pb.ResultFrame.FromString(named)
    handle, start = np.frombuffer(said.handles, "<u4"), np.frombuffer(said.positions, "<u8")
    return pb.StreamResponse.FromString(number).frame, handle, start


def _before(message: Message, nbytes: int) -> bytes:
    """What a message has before its last so many bytes."""
    data = message.SerializeToString()
    return data[: len(data) - nbytes]
