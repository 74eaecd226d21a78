"""What an asyncio client waits on: what differs from the other twin beside the link."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

T = TypeVar("T")

Done: TypeAlias = asyncio.Future[None]
"""What a ticket's caller awaits; a link makes it."""

Attempt: TypeAlias = Callable[[], AbstractAsyncContextManager[grpc.aio.Channel]]
"""A try of one call, on the channel that it has; where the server could not answer, another is to follow."""

LIVE: tuple[type, ...] = (AsyncIterable,)
"""What `stream` takes beside iterables."""

Lock = asyncio.Lock


async def wait_for_all(waits: Sequence[Done], seconds: float) -> None:
    """Returns when all are done, and after so many seconds anyway."""
    if waits:
        await asyncio.wait(waits, timeout=seconds)


async def apart(call: Callable[[], T]) -> T:
    """What a call gives that waits, in a thread of its own; when cancelled, the call goes on."""
    return await asyncio.to_thread(call)


class Cache(Generic[T]):
    """What is fetched once, by one for all who ask meanwhile, and kept; all hear of a failure, which is not kept."""

    def __init__(self) -> None:
        self._found: dict[Hashable, asyncio.Future[T]] = {}

    async def get(self, key: Hashable, fetch: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What is kept under a key; where that is nothing, `fetch` brings it."""
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = asyncio.ensure_future(fetch())
            found.add_done_callback(lambda done: self._forget_failed(key, done))
        return await asyncio.shield(found)  # Who is cancelled is not to take it from the others.

    def forget(self, key: Hashable) -> None:
        """Has it fetched again by whoever asks next."""
        self._found.pop(key, None)

    def clear(self) -> None:
        """Forgets everything."""
        self._found.clear()

    def _forget_failed(self, key: Hashable, done: asyncio.Future[T]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._found.get(key) is done:
            del self._found[key]


class Race(Generic[T]):
    """Several that are waited for at once."""

    def __init__(self) -> None:
        self._came: deque[T] = deque()
        self._some = asyncio.Event()

    def add(self, done: asyncio.Future[Any], key: T) -> None:
        """Has `next` give a key when something is done."""
        done.add_done_callback(lambda _: self._note(key))

    async def next(self) -> list[T]:
        """The keys of those that are done, of at least one; each once."""
        while not self._came:
            self._some.clear()
            await self._some.wait()
        found = list(self._came)
        self._came.clear()
        return found

    def _note(self, key: T) -> None:
        self._came.append(key)
        self._some.set()
