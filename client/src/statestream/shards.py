"""The shards of a client: which link a session belongs to, and what each link is told of itself. No I/O lives here."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

import numpy as np

from statestream.arguments import parse_addresses
from statestream.contract.tensors import Ints
from statestream.core import StreamCore
from statestream.settings import Settings


class Doer(Protocol):
    """A link, as far as it is the same for both twins."""

    @property
    def core(self) -> StreamCore:
        """The protocol of its stream."""

    def do(self, operation: Callable[[], object]) -> None:
        """Has the core do something soon, in the order of the calls."""

    def soon(self, operation: Callable[[], object], *, at_once: bool) -> None:
        """Calls a function that has the core do something; from any thread and at any moment, and never raises.

        With `at_once` what is called behind it comes behind it; it must only note something then, because it may come
        in the midst of what the core does.
        """


L = TypeVar("L", bound=Doer)


@dataclass(frozen=True, slots=True)
class Route:
    """The way of one shard to a server.

    Attributes:
        addresses: Where servers are; the first is tried first.
        key: The route key: its stream and its calls carry it, for proxies to hash on.
        label: What messages say behind an address; empty where the client has one shard only.
    """

    addresses: tuple[str, ...]
    key: str
    label: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("x-session-id", self.key),)


def routes(address: str, settings: Settings) -> list[Route]:
    """One way for each shard. With several addresses the shards start at different ones, in turn.

    A client with one shard has the route key that was set; of several, shard k has that key with "-k" behind it. Keys
    are random where none was set.
    """
    addresses, count = parse_addresses(address), settings.shards
    if count == 1:
        return [Route(addresses, settings.route_key or uuid.uuid4().hex)]
    found = []
    for shard in range(count):
        first = shard % len(addresses)
        key = f"{settings.route_key}-{shard}" if settings.route_key else uuid.uuid4().hex
        label = f" (shard {shard} of {count}, counted from 0; route key {key!r})"
        found.append(Route(addresses[first:] + addresses[:first], key, label))
    return found


def make_core(settings: Settings) -> StreamCore:
    """The protocol of one shard; the shards of a client share its replay buffer equally."""
    return StreamCore(
        os.urandom(16),
        time.time_ns() // 1000,
        replay_buffer_bytes=max(1, settings.replay_buffer_bytes // settings.shards),
        keep_seconds=settings.replay_seconds,
        retry_seconds=settings.retry_timeout,
        lose_when_full=settings.on_full == "drop",
    )


def shard_of(model: str, id: str, count: int) -> int:
    """The shard of a session: a hash of model and id that is the same in every process and release."""
    digest = blake2b(b"%b\0%b" % (model.encode(), id.encode()), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


class Shards(Generic[L]):
    """The links of one client.

    A session belongs to one of them, by its model and id: its steps, and every call about it, go that way and carry
    that route key. What is about no session goes by the first.
    """

    def __init__(self, links: Sequence[L]) -> None:
        self.links = tuple(links)
        self.first = self.links[0]

    def of(self, model: str, id: str) -> L:
        """The link of a session."""
        return self.links[shard_of(model, id, len(self.links))] if len(self.links) > 1 else self.first

    def divide(self, model: str, ids: Sequence[str]) -> list[tuple[L, Ints]]:
        """The links that sessions belong to, each with the rows of its sessions, ascending; one at least."""
        if len(self.links) == 1 or not ids:
            return [(self.first, np.arange(len(ids)))]
        owners = np.fromiter((shard_of(model, id, len(self.links)) for id in ids), np.int64, len(ids))
        return [(self.links[owner], np.flatnonzero(owners == owner)) for owner in np.unique(owners).tolist()]

    def beside(self, model: str, link: L) -> str:
        """A random id of a session that belongs to a link: what is created there can be opened where it is."""
        while True:
            id = uuid.uuid4().hex
            if self.of(model, id) is link:
                return id
