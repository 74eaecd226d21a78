"""Prefixed messages: gRPC's framing, a flag and a length before each; what of them came in parts is put together here.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md has the rules. What carries the bytes is not known here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, TypeAlias

import grpc

HEAD: Final = 5
"""Bytes of a flag and a length."""
_VIEWED: Final = 4096
"""Bytes of a part that is kept as it came; shorter ones are gathered, lest there are very many."""
_CODE: Final = grpc.StatusCode
_Part: TypeAlias = "bytes | bytearray | memoryview"


class Refused(Exception):
    """What came is no message, or one that is too long: the status that ends the call."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        """With this status."""
        super().__init__(details)
        self.code, self.details = code, details


class Parts:
    """What came of messages that are not whole."""

    __slots__ = ("_gzip", "_most", "_parts", "_size", "_wanted")

    def __init__(self, most: int, *, gzip: bool) -> None:
        """Nothing came; a message has at most so many bytes, and may be packed by gzip where the call said so."""
        self._most, self._gzip = most, gzip
        self._parts = list[_Part]()
        self._size, self._wanted = 0, HEAD  # Bytes of them; how many they are to be before it is worth a look.

    def __len__(self) -> int:
        return self._size

    @property
    def missing(self) -> int:
        """Bytes that must come before a message can be whole."""
        return max(self._wanted - self._size, 0)

    def add(self, data: bytes, begin: int, end: int) -> None:
        """Adds bytes."""
        size, parts = end - begin, self._parts
        if size >= _VIEWED:
            # A view where it is most of what was read: one of little would keep all of it.
            parts.append(memoryview(data)[begin:end] if 2 * size >= len(data) else data[begin:end])
        elif parts and type(parts[-1]) is bytearray:
            parts[-1] += data[begin:end]
        else:
            parts.append(bytearray(data[begin:end]))
        self._size += size

    def whole(self) -> Iterator[tuple[bytes, int]]:
        """The messages that are whole, and how many bytes each had; what is left waits for more.

        Raises:
            Refused: What comes next is none that is taken; those before it were given.
        """
        parts = self._parts
        if self._size < self._wanted:
            return
        if self._wanted > HEAD and self._size == self._wanted and not parts[0][0] and len(parts[0]) >= HEAD:
            # The usual end of a large message: its bytes are copied once.
            parts[0] = memoryview(parts[0])[HEAD:]
            size = self._size
            self._keep(b"")
            yield b"".join(parts), size
            return
        data, at = b"".join(parts), 0
        self._wanted = HEAD
        while len(data) - at >= HEAD:
            size = HEAD + int.from_bytes(data[at + 1 : at + HEAD], "big")
            check_size(size - HEAD, self._most)
            if at + size > len(data):
                self._wanted = size
                break
            message = data[at + HEAD : at + size]
            if data[at]:
                message = self._inflated(data[at], message)
            at += size
            yield message, size
        self._keep(data[at:])

    def _keep(self, rest: bytes) -> None:
        self._parts, self._size = [rest] if rest else [], len(rest)
        self._wanted = self._wanted if rest else HEAD

    def _inflated(self, flag: int, message: bytes) -> bytes:
        """A compressed message as it was."""
        if flag != 1 or not self._gzip:
            raise Refused(_CODE.INTERNAL, "a message is marked as compressed, and grpc-encoding does not say how")
        try:
            stream = zlib.decompressobj(wbits=31)
            found = stream.decompress(message, self._most + 1)
            whole = stream.eof and not stream.unused_data
        except zlib.error:
            found, whole = b"", False
        if len(found) > self._most:
            raise Refused(
                _CODE.RESOURCE_EXHAUSTED, f"Received message larger than max (more than {self._most}, unpacked)"
            )
        if not whole:
            raise Refused(_CODE.INTERNAL, "a message is no gzip")
        return found


def check_size(size: int, most: int) -> None:
    """Checks the length of a message.

    Raises:
        Refused: It is more than `most`.
    """
    if size > most:
        raise Refused(_CODE.RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {most})")
