"""What a synchronous client asks of several of its shards at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from statestream.contract.errors import StatestreamError
from statestream.core import Ticket, leave
from statestream.sync.asked import Asked
from statestream.sync.link import Link

K = TypeVar("K", bound=Ticket)

CLOSE_SECONDS = 2.0
"""How long `close` waits for the server to let sessions go."""


def perform_all(links: Sequence[Link], makes: Sequence[Callable[[], K]]) -> list[K | StatestreamError]:
    """Has each link's core make its ticket, all at once; waits for all. A link that could not has its error."""
    asked = [Asked(make) for make in makes]
    try:
        return run_all(links, asked)
    except BaseException:
        for link, one in zip(links, asked, strict=True):
            link.drop(one)
        raise


def run_all(links: Sequence[Link], asked: Sequence[Asked[K]]) -> list[K | StatestreamError]:
    """The same of what was prepared; Ctrl-C stops the waiting, what has begun goes on."""
    found: list[K | StatestreamError] = []
    closed: dict[int, StatestreamError] = {}
    for number, (link, one) in enumerate(zip(links, asked, strict=True)):
        try:
            link.do(one.begin)
        except StatestreamError as error:
            closed[number] = error
    for number, (link, one) in enumerate(zip(links, asked, strict=True)):
        try:
            found.append(closed[number] if number in closed else link.answer(one))
        except StatestreamError as error:
            found.append(error)
    return found


def start_all(links: Sequence[Link]) -> None:
    """Connects all links.

    Raises:
        ServerUnavailable: One of them reached no server within `connect_timeout`; none is connected then.
    """
    try:
        for link in links:
            link.start()
        for link in links:
            link.wait()
    except BaseException:
        close_all(links)
        raise


def leave_all(links: Sequence[Link]) -> None:
    """Asks the server to let go of what is still open, and waits for a moment."""
    until = time.monotonic() + CLOSE_SECONDS
    under_way = []
    for link in links:
        done = threading.Event()
        with contextlib.suppress(StatestreamError):
            link.do(partial(leave, link.core, done.set))
            under_way.append(done)
    for done in under_way:
        done.wait(max(0.0, until - time.monotonic()))


def close_all(links: Sequence[Link]) -> None:
    """Ends all connections; whatever is under way fails with Closed."""
    for link in links:
        link.close()
