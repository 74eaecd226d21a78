"""Heads: what a request says beside its contents, so that the next one of its sequence is known by its bytes.

The requests of a sequence differ in their contents, and in their id or `sequence_position` where a client gives one:
whatever else they say is the same bytes each time. These are kept with what they meant when the message was decoded,
and compared. No message of the protocol is made of what is taken so. Both ends of what is left out are ends of fields,
so that equal bytes around it mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

LONGEST: Final = 127
"""Bytes of an id at most: their number is one byte."""
_MOST: Final = 16_384
"""Heads that are kept at a time."""
_LONGEST_HEAD: Final = 1024
_MOST_LENGTHS: Final = 4
"""Lengths of heads that requests of one length are looked for with."""
_MODEL, _VERSION, _ID, _PARAMETER, _INPUT, _OUTPUT, _CONTENTS = (number << 3 | 2 for number in range(1, 8))
_NAME: Final = b"sequence_position"
_POSITION: Final = b"\x0a\x11" + _NAME + b"\x12"
"""How the entry of the parameter begins, behind its tag and length; its value is what follows."""


Seen: TypeAlias = tuple[T, bytes, int | None, list[bytes]]
"""A request whose head was seen before: what is kept with that, its id, its position, the bytes of its inputs."""


class _Cut(NamedTuple):
    """A request without its id and position: these, and where the position stood, 0 for none."""

    rest: bytes
    id: bytes
    position: int | None
    at: int


class _Kept(NamedTuple, Generic[T]):
    """A head: where the position stands in its requests, how long the rest is, the contents there, what is between."""

    head: T
    at: int
    size: int
    spans: Sequence[tuple[int, int]]
    between: Sequence[tuple[int, int, bytes]]


class Heads(Generic[T]):
    """The heads that were seen, by tenant."""

    def __init__(self) -> None:
        """None was."""
        self._kept: dict[str, dict[bytes, _Kept[T]]] = {}
        self._lengths: dict[int, list[int]] = {}
        """The lengths of heads, by that of the whole request."""
        self._count = 0

    def find(self, tenant: str, data: bytes) -> Seen[T] | None:
        """What a request says whose head was seen; None where it was not."""
        kept = self._kept.get(tenant)
        if not kept:
            return None
        # As most are: nothing is to be cut out.
        for length in self._lengths.get(len(data), ()):
            found = kept.get(data[:length])
            if found is not None:
                return None if found.at else _seen(found, data, b"", None)
        cut = _cut(data)
        if cut is None or cut.rest is data:
            return None
        rest, name, position, at = cut
        for length in self._lengths.get(len(rest), ()):
            found = kept.get(rest[:length])
            if found is not None:
                return _seen(found, rest, name, position) if found.at == at else None
        return None

    def learn(
        self, tenant: str, data: bytes, head: T, name: bytes, position: int | None, contents: Sequence[bytes]
    ) -> None:
        """Keeps the head of a request; not where its bytes are laid out in another way than libraries do.

        Args:
            tenant: Whose it is.
            data: The request.
            head: What is kept.
            name: Its id, as the decoded message has it.
            position: Its `sequence_position` there.
            contents: The bytes of its inputs there.
        """
        cut = _cut(data)
        if cut is None or (cut.id, cut.position) != (name, position) or _NAME in cut.rest:
            return
        fields = _fields(cut.rest)
        spans = [(begin, end) for tag, _, begin, end in fields if tag == _CONTENTS]
        first = len(fields) - len(spans)
        if not spans or [cut.rest[begin:end] for begin, end in spans] != [*contents] or not _is_usual(fields, first):
            return
        if position is not None and cut.at not in [start for _, start, _, _ in fields]:
            return
        length, lengths = spans[0][0], self._lengths.get(len(cut.rest), ())
        if length > _LONGEST_HEAD or (length not in lengths and len(lengths) >= _MOST_LENGTHS):
            return
        if self._count >= _MOST:
            self._kept, self._lengths, self._count = {}, {}, 0
        lengths = self._lengths.setdefault(len(cut.rest), [])
        if length not in lengths:
            lengths.append(length)
        between = [(a, b, cut.rest[a:b]) for (_, a), (b, _) in pairwise(spans)]
        kept, key = self._kept.setdefault(tenant, {}), cut.rest[:length]
        self._count += key not in kept
        kept[key] = _Kept(head, cut.at, len(cut.rest), spans, between)


def _seen(kept: _Kept[T], rest: bytes, name: bytes, position: int | None) -> Seen[T] | None:
    """A request whose head is this; None where its contents are of other lengths, or something comes behind them."""
    if len(rest) != kept.size:
        return None
    for begin, end, between in kept.between:
        if rest[begin:end] != between:
            return None
    return kept.head, name, position, [rest[begin:end] for begin, end in kept.spans]


def _cut(data: bytes) -> _Cut | None:
    """Takes the id and the position out; None where it is no usual request."""
    try:
        behind = 2 + data[1]
        if data[behind] == _VERSION:
            behind += 2 + data[behind + 1]
        name = b""
        if data[behind] == _ID:
            size = data[behind + 1]
            end = behind + 2 + size
            if size > LONGEST:
                return None
            name, data = data[behind + 2 : end], data[:behind] + data[end:]
        at = data.find(_POSITION, behind, _LONGEST_HEAD)
        if at < 0:
            return _Cut(data, name, None, 0)
        # The entry: tag, length, name, then the value: tag, length, tag of a number, the number.
        begin, value, end = at - 2, at + len(_POSITION), at + data[at - 1]
        if data[begin] != _PARAMETER or data[value + 1] != 0x10 or value + 1 + data[value] != end or data[at - 1] > 127:
            return None
        position, last = 0, end - 1
        if not value + 2 <= last <= value + 11 or data[last] > 127:
            return None
        for place in range(last, value + 1, -1):
            byte = data[place]
            if byte < 128 and place < last:
                return None
            position = position << 7 | byte & 127
        return None if position >> 63 else _Cut(data[:begin] + data[end:], name, position, begin)
    except IndexError:
        return None


def _fields(data: bytes) -> list[tuple[int, int, int, int]]:
    """The fields of a message: tag, begin, and the begin and end of what is in it; tag 0 for one of another kind."""
    return [*_walk(data)]


def _walk(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    at, end = 0, len(data)
    while at < end:
        start, tag = at, data[at]
        size = shift = 0
        at += 1
        while at < end:
            byte = data[at]
            at += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if tag & 7 != 2 or tag > 127 or at + size > end:
            yield 0, start, end, end
            return
        yield tag, start, at, at + size
        at += size


def _is_usual(fields: Sequence[tuple[int, int, int, int]], first: int) -> bool:
    """Whether the contents, from field `first` on, come last, and the model's name and version first, as short."""
    tags = [tag for tag, *_ in fields]
    if first < 1 or tags[0] != _MODEL or any(tag == _CONTENTS for tag in tags[:first]):
        return False
    named = 2 if first > 1 and tags[1] == _VERSION else 1
    short = all(begin - start == 2 for _, start, begin, _ in fields[:named])
    return short and all(tag in (_PARAMETER, _INPUT, _OUTPUT) for tag in tags[named:first])
