"""Where records lie in Redis: the names of its keys, the buckets over which they are spread, calls for buckets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from statestream_server.stores.base import Key
from statestream_server.stores.lua import Script

Command = tuple[str | bytes | int, ...]
T = TypeVar("T")

BUCKETS = 4096
"""Records are spread over so many groups; a group lies in one Cluster slot and is written by one script call."""
GENERATION = "ss:generation"
"""The key that stands for the store's contents."""
# A round trip takes so many commands and bytes at most: it ends well within its deadline, other calls get
# their turn in between, and the event loop is not kept for long.
SLICE_COMMANDS = 256
_SLICE_BYTES = 4 << 20
# A command holds Redis up for everybody while it runs.
_COMMAND_RECORDS = 1024
_COMMAND_BYTES = 1 << 20


RECORDS = b"ss:{b*}:r:*"
"""The pattern of all records' keys."""


class Name:
    """Where a key's record lies: its bucket, its Redis key, and its member in the bucket's index."""

    __slots__ = ("bucket", "member", "record")

    def __init__(self, member: bytes) -> None:
        digest = hashlib.blake2b(member, digest_size=18).digest()
        self.bucket = int.from_bytes(digest[:2], "big") % BUCKETS
        self.member = member
        self.record = b"ss:{b%04d}:r:%s" % (self.bucket, digest[2:].hex().encode())


SERVERS: Final = b"ss:servers"
"""The set of server processes that said they live; those that went without a word are still in it."""


def name_of(key: Key) -> Name:
    """Where a session's record lies.

    Raises:
        ValueError: The tenant or the model has a zero byte.
    """
    tenant, model, id_ = key
    if "\0" in tenant or "\0" in model:
        raise ValueError(f"the tenant or model of {key!r} has a zero byte; choose a name without")
    return Name(f"{tenant}\0{model}\0{id_}".encode())


def index_of(bucket: int) -> bytes:
    """The sorted set of a bucket's live members."""
    return b"ss:{b%04d}:i" % bucket


def server_key(owner: str) -> bytes:
    """The key that holds a living server process' address."""
    return b"ss:server:" + owner.encode()


def load_key(owner: str) -> bytes:
    """The key that holds how many sessions a living server process has."""
    return b"ss:load:" + owner.encode()


def tombs_of(bucket: int) -> bytes:
    """The sorted set of a bucket's tombstones, by time."""
    return b"ss:{b%04d}:d" % bucket


def by_bucket(names: Sequence[Name]) -> dict[int, list[int]]:
    """The places of names, by their bucket."""
    buckets: dict[int, list[int]] = {}
    for index, name in enumerate(names):
        buckets.setdefault(name.bucket, []).append(index)
    return buckets


def sliced(names: Sequence[Name], sizes: Sequence[int]) -> Iterator[list[tuple[int, list[int]]]]:
    """Cuts a batch into round trips, each of commands about one bucket; neither is above its count and bytes.

    What comes several times for one name keeps its order.
    """
    slice_: list[tuple[int, list[int]]] = []
    size = 0
    for bucket, indices in by_bucket(names).items():
        for part in _cut(indices, sizes):
            slice_.append((bucket, part))
            size += sum(sizes[index] for index in part)
            if len(slice_) == SLICE_COMMANDS or size >= _SLICE_BYTES:
                yield slice_
                slice_, size = [], 0
    if slice_:
        yield slice_


def _cut(indices: list[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cuts what one bucket has into what one command takes."""
    part: list[int] = []
    size = 0
    for index in indices:
        if part and (len(part) == _COMMAND_RECORDS or size + sizes[index] > _COMMAND_BYTES):
            yield part
            part, size = [], 0
        part.append(index)
        size += sizes[index]
    yield part


def script_call(script: Script, bucket: int, records: Sequence[bytes], arguments: Iterable[str | bytes]) -> Command:
    """The call of a script with a bucket's keys."""
    return ("EVALSHA", script.digest, len(records) + 2, index_of(bucket), tombs_of(bucket), *records, *arguments)


def pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Items, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
