"""What an asyncio client asks of several of its shards at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from statestream.aio.link import Link
from statestream.contract.errors import StatestreamError
from statestream.core import Ticket, leave

K = TypeVar("K", bound=Ticket)

CLOSE_SECONDS = 2.0
"""How long `close` waits for the server to let sessions go."""


async def perform_all(links: Sequence[Link], makes: Sequence[Callable[[], K]]) -> list[K | StatestreamError]:
    """Has each link's core make its ticket, all at once; waits for all. A link that could not has its error."""
    if len(links) == 1:
        # No task of its own.
        return [await links[0].perform(makes[0])]
    found: list[K | StatestreamError] = []
    for answer in await asyncio.gather(*map(Link.perform, links, makes), return_exceptions=True):
        if isinstance(answer, BaseException) and not isinstance(answer, StatestreamError):
            raise answer
        found.append(answer)
    return found


async def start_all(links: Sequence[Link]) -> None:
    """Connects all links.

    Raises:
        ServerUnavailable: One of them reached no server within `connect_timeout`; none is connected then.
    """
    try:
        for answer in await asyncio.gather(*(link.start() for link in links), return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
    except BaseException:
        await close_all(links)
        raise


async def leave_all(links: Sequence[Link]) -> None:
    """Asks the server to let go of what is still open, and waits for a moment."""
    under_way = []
    for link in links:
        done = asyncio.Event()
        with contextlib.suppress(StatestreamError):
            link.do(partial(leave, link.core, done.set))
            under_way.append(done.wait())
    if not under_way:
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*under_way), CLOSE_SECONDS)


async def close_all(links: Sequence[Link]) -> None:
    """Ends all connections; whatever is under way fails with Closed."""
    for link in links:
        await link.close()
