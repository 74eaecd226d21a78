"""Both twins behind one asynchronous face, so that each scenario is written once and run with each.

A call of the synchronous client runs in a thread, as a program of its own would run it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import statestream
from statestream import aio


class Sync:
    """The synchronous client, its calls awaited in threads."""

    name = "sync"

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(statestream.connect, *args, **kwargs)

    async def call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(method, *args, **kwargs)

    async def collect(self, make: Any, *args: Any, **kwargs: Any) -> list[Any]:
        def collect() -> list[Any]:
            iterator: Iterator[Any] = make(*args, **kwargs)
            return list(iterator)

        return await asyncio.to_thread(collect)

    async def each(self, note: Callable[[Any], Any], make: Any, *args: Any, **kwargs: Any) -> None:
        def walk() -> None:
            for item in make(*args, **kwargs):
                note(item)

        await asyncio.to_thread(walk)


class Aio:
    """The asyncio client."""

    name = "aio"

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        return await aio.connect(*args, **kwargs)

    async def call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        return await method(*args, **kwargs)

    async def collect(self, make: Any, *args: Any, **kwargs: Any) -> list[Any]:
        iterator: AsyncIterator[Any] = make(*args, **kwargs)
        return [item async for item in iterator]

    async def each(self, note: Callable[[Any], Any], make: Any, *args: Any, **kwargs: Any) -> None:
        async for item in make(*args, **kwargs):
            noted = note(item)
            if inspect.isawaitable(noted):
                await noted


Twin = Sync | Aio

Connect = Callable[..., Awaitable[Any]]
"""What the fixture `connect` gives: `await connect(address, **settings)` is a client."""
