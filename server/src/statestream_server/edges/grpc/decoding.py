"""Bytes of a call become a message, or a reason why not; what would cost much to decode is weighed before.

A message of two bytes an element, 16 MiB of them, becomes objects of a gigabyte before any servicer sees it. So large
messages are walked first, at their own bytes, and refused where they have too many elements.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from statestream.contract import errors

MOST_ELEMENTS: Final = 1 << 16
"""Fields of one message, of those in it too, and 16 bytes each of its lists of numbers; a column counts as one."""
TURN_BYTES: Final = 32 << 20
"""Bytes of calls that are decoded in one turn of the loop; more of them would hold everybody up."""
_RETRY_SECONDS: Final = 0.1
_LIGHT: Final = 1 << 16
"""Bytes below which a message is not walked: whatever is in it is decoded in a millisecond or two."""
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a message: why there is none.

    Attributes:
        error: What the caller is told.
        frame: The number of the frame, 0 where it is not known; frames of streams only.
    """

    error: errors.StatestreamError
    frame: int = 0


class Undecoded:
    """A message that is decoded when somebody asks for it: what takes it may know it by its bytes."""

    __slots__ = ("_decode", "data", "model_name")

    def __init__(self, data: bytes, decode: Callable[[bytes], Message | Unreadable]) -> None:
        """A message of these bytes."""
        self.data = data
        self.model_name = ""
        """The model that it is about, as soon as that is known."""
        self._decode = decode

    def message(self) -> Message | Unreadable:
        """The message, or why there is none."""
        return self._decode(self.data)


class _Plan(NamedTuple):
    """What the fields of a message are: messages in it by tag, and the tags of packed lists of numbers."""

    inner: Mapping[int, _Plan]
    packed: frozenset[int]


def decoder(kind: type[Message]) -> Callable[[bytes], Message | Unreadable]:
    """What makes messages of a kind of bytes; it never raises."""
    plan, name = _plan(kind.DESCRIPTOR), kind.DESCRIPTOR.name
    parse: Callable[[bytes], Message] = kind.FromString

    def decode(data: bytes) -> Message | Unreadable:
        try:
            if len(data) > _LIGHT and _weight(data, plan) > MOST_ELEMENTS:
                return Unreadable(
                    errors.BadFrame(
                        f"a {name} of {len(data)} bytes has more than {MOST_ELEMENTS} elements; send fewer at a time",
                        metadata={"field": name, "max_elements": str(MOST_ELEMENTS)},
                    ),
                    _frame(data),
                )
            return parse(data)
        except (DecodeError, IndexError, ValueError):
            return Unreadable(
                errors.BadFrame(
                    f"{len(data)} bytes came that are no {name} of statestream.v1; generate the stubs anew",
                    metadata={"field": name},
                ),
                _frame(data),
            )

    return decode


def later(decode: Callable[[bytes], Message | Unreadable]) -> Callable[[bytes], Message | Unreadable | Undecoded]:
    """The same, later; large messages are decoded at once, as they are weighed and counted."""
    return lambda data: Undecoded(data, decode) if len(data) <= _LIGHT else decode(data)


class DecodeBudget:
    """The bytes of calls that are decoded in one turn of the loop.

    gRPC hands over all requests that arrived in one turn, whatever they weigh; decoded at once, gigabytes of them hold
    everybody up for seconds. Streams are not concerned: each of them is read a message at a time.
    """

    def __init__(self) -> None:
        """Nothing was decoded."""
        self._bytes = 0

    def bounded(self, decode: Callable[[bytes], Message | Unreadable]) -> Callable[[bytes], Message | Unreadable]:
        """The same for a call, which is refused where its turn has enough to do; the first of a turn never is."""

        def decode_bounded(data: bytes) -> Message | Unreadable:
            size = len(data)
            if size > _LIGHT:
                if self._bytes and self._bytes + size > TURN_BYTES:
                    return Unreadable(
                        errors.Overloaded(
                            f"calls of {self._bytes} bytes arrived at the moment of this one, which has {size}; the"
                            f" limit is {TURN_BYTES} together. Call again later",
                            retry_after=_RETRY_SECONDS,
                        )
                    )
                if not self._bytes:
                    asyncio.get_running_loop().call_soon(self._over)
                self._bytes += size
            return decode(data)

        return decode_bounded

    def _over(self) -> None:
        self._bytes = 0


def requests_of(*files: Any) -> dict[str, dict[str, type[Message]]]:
    """The request of every method of the services in generated modules, by service and method."""
    from google.protobuf.message_factory import GetMessageClass

    return {
        service.full_name: {method.name: GetMessageClass(method.input_type) for method in service.methods}
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
    }


@functools.cache
def _plan(kind: Descriptor) -> _Plan:
    inner, packed = dict[int, _Plan](), set[int]()
    for field in kind.fields:
        tag = field.number << 3 | _DELIMITED
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            inner[tag] = _plan(field.message_type)
        elif field.is_repeated and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            packed.add(tag)
    return _Plan(inner, frozenset(packed))


def _weight(data: bytes, plan: _Plan) -> int:
    """Elements of a message; some number above MOST_ELEMENTS where there are more.

    Raises:
        IndexError, ValueError: The bytes are no message.
    """
    weight, at, end = 0, 0, len(data)
    outer = list[tuple[int, _Plan]]()
    while True:
        while at < end:
            weight += 1
            if weight > MOST_ELEMENTS:
                return weight
            tag, at = data[at], at + 1
            if tag >= 0x80:
                tag, at = _varint(data, at - 1)
            wire = tag & 7
            if wire == _DELIMITED:
                size, at = data[at], at + 1
                if size >= 0x80:
                    size, at = _varint(data, at - 1)
                if at + size > end:
                    raise ValueError(size)
                inner = plan.inner.get(tag)
                if inner is not None:
                    outer.append((end, plan))
                    end, plan = at + size, inner
                    continue
                if tag in plan.packed:
                    weight += size >> 4
                at += size
            elif wire == _VARINT:
                _, at = _varint(data, at)
            elif wire == _FIXED32:
                at += 4
            elif wire == _FIXED64:
                at += 8
            else:
                raise ValueError(wire)
        if not outer:
            return weight
        end, plan = outer.pop()


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(shift)


def _frame(data: bytes) -> int:
    """The number of a frame, which stands at its begin where a library wrote it."""
    try:
        return _varint(data, 1)[0] if data[:1] == b"\x08" else 0
    except (IndexError, ValueError):
        return 0
