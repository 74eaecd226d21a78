"""Answers to the steps of sequences, as bytes: most of one is the same each time, and is made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from statestream_server.edges.oip import oip_pb2 as pb

_MODEL, _VERSION, _ID, _PARAMETER, _OUTPUT, _CONTENTS = (bytes((number << 3 | 2,)) for number in range(1, 7))
_STREAMED: Final = b"\x12"
"""An answer within that of a stream."""
_ONE: Final = [bytes((number,)) for number in range(128)]
_POSITION: Final = b"\x0a\x11sequence_position\x12"
_POSITIONS: Final = [
    _PARAMETER + bytes((len(_POSITION) + 2 + size,)) + _POSITION + bytes((1 + size, 0x10)) for size in range(11)
]
"""What stands before a position of so many bytes."""


class Port(NamedTuple):
    """A tensor on the wire: its steps lie one behind the other.

    Attributes:
        name, datatype: As they are written.
        shape: Of one step, with the graph's own axes, a batch of 1.
        time: The axis of the steps, None where there is one step.
        nbytes: Of one step.
        packed: Whether several steps lie as the graph has them.
    """

    name: str
    datatype: str
    shape: list[int]
    time: int | None
    nbytes: int
    packed: bool

    def of(self, steps: int) -> list[int]:
        """The shape of so many steps."""
        if steps == 1 or self.time is None:
            return self.shape
        return [*self.shape[: self.time], steps, *self.shape[self.time + 1 :]]


class Outputs:
    """Some outputs of one version of a model."""

    def __init__(self, version: int, ports: Sequence[Port], places: Sequence[int]) -> None:
        """Those at some places of the signature."""
        self.version = _field(_VERSION, str(version).encode())
        self.places = places
        self._ports = [ports[place] for place in places]
        self._pieces: dict[int, list[tuple[int, bytes]]] = {}

    def pieces(self, steps: int) -> list[tuple[int, bytes]]:
        """The place of each output of so many steps, and what stands before its contents."""
        found = self._pieces.get(steps)
        if found is None:
            message = pb.ModelInferResponse()
            for port in self._ports:
                message.outputs.add(name=port.name, datatype=port.datatype, shape=port.of(steps))
            said, found = message.SerializeToString(), self._pieces.setdefault(steps, [])
            for place, port in zip(self.places, self._ports, strict=True):
                found.append((place, said + _CONTENTS + _varint(steps * port.nbytes)))
                said = b""
        return found


class Answers:
    """The answers to one sequence, as far as they are known before."""

    __slots__ = ("_begin", "_outputs", "_sequence", "_unnamed")

    def __init__(self, model: str, sequence: int | str, outputs: Outputs) -> None:
        """To requests that name a model and a sequence in this way, and want these outputs."""
        said = pb.ModelInferResponse()
        if isinstance(sequence, str):
            said.parameters["sequence_id"].string_param = sequence
        else:
            said.parameters["sequence_id"].int64_param = sequence
        self._begin = _field(_MODEL, model.encode()) + outputs.version
        self._sequence = said.SerializeToString()
        self._unnamed = self._begin + self._sequence
        self._outputs = outputs

    def answer(self, name: bytes, position: int, steps: int, outputs: Sequence[bytes]) -> bytes:
        """The ModelInferResponse to the request `name`: where the sequence stands, and the bytes of every output."""
        number = _varint(position)
        begin = self._begin + _field(_ID, name) + self._sequence if name else self._unnamed
        parts = [begin, _POSITIONS[len(number)], number]
        for place, before in self._outputs.pieces(steps):
            parts += (before, outputs[place])
        return b"".join(parts)


class Encoded:
    """A message that is bytes already; when it is made is nothing that waits for its turn."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        """The message of these bytes."""
        self._data = data

    def __call__(self) -> Encoded:
        """Itself."""
        return self

    def __len__(self) -> int:
        return len(self._data)

    def ByteSize(self) -> int:
        """How many bytes it has."""
        return len(self._data)

    def SerializeToString(self) -> bytes:
        """The bytes."""
        return self._data


def streamed(answer: bytes) -> bytes:
    """A stream's answer that is this ModelInferResponse."""
    return b"".join((_STREAMED, _varint(len(answer)), answer))


def _field(tag: bytes, data: bytes) -> bytes:
    return b"".join((tag, _varint(len(data)), data))


def _varint(number: int) -> bytes:
    """A number that is not negative, as protobuf writes it."""
    if number < 128:
        return _ONE[number]
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
