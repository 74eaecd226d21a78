# Generated from statestream/aio/together.py by `make twins`; change that one.
"""What a client has the cores of its shards do, one or several at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from statestream.asked import Asked
from statestream.contract.errors import Closed, StatestreamError
from statestream.core import Ticket, leave
from statestream.sync.link import Link
from statestream.sync.waiting import Done, wait_for_all

K = TypeVar("K", bound=Ticket)

CLOSE_SECONDS = 2.0
"""How long `close` waits for the server to let sessions go."""


def at_once(begin: Callable[[], object]) -> None:
    """Has what is to be submitted begin."""
    begin()


def perform(link: Link, make: Callable[[], K], submit: Callable[[Callable[[], object]], object] = at_once) -> K:
    """Has a link's core make a ticket, and waits until it is done; raises what went wrong with the whole of it."""
    (answer,) = perform_all([link], [make], submit)
    if isinstance(answer, StatestreamError):
        raise answer
    return answer


def perform_all(
    links: Sequence[Link],
    makes: Sequence[Callable[[], K]],
    submit: Callable[[Callable[[], object]], object] = at_once,
) -> list[K | StatestreamError]:
    """Has each link's core make its ticket, all at once; waits for all. A link that could not has its error.

    On Ctrl-C, what has not begun, and can be, is dropped.

    Args:
        links: Several, each at most once.
        makes: What makes each one's ticket.
        submit: Is given what has the tickets made, and calls it if it may, in its turn.
    """
    asked = [Asked(make, link.done()) for link, make in zip(links, makes, strict=True)]
    closed: dict[int, StatestreamError] = {}

    def begin() -> None:
        for number, (link, one) in enumerate(zip(links, asked, strict=True)):
            try:
                link.do(one.begin)
            except Closed as error:
                closed[number] = error

    # A caller may be stopped between any two of these lines; what was asked for is known by then.
    try:
        submit(begin)
        for number, one in enumerate(asked):
            if number not in closed:
                one.done.wait()
    except BaseException:
        for link, one in zip(links, asked, strict=True):
            with contextlib.suppress(StatestreamError):
                link.do(partial(one.forget, link.core.cancel))
        raise
    return [closed.get(number) or one.answer() for number, one in enumerate(asked)]


def start_all(links: Sequence[Link]) -> None:
    """Connects all links.

    Raises:
        ServerUnavailable: One of them reached no server within `connect_timeout`; none is connected then.
    """
    try:
        for link in links:
            link.start()
        for link in links:
            link.connected()
    except BaseException:
        close_all(links)
        raise


def leave_all(links: Sequence[Link]) -> None:
    """Asks the server to let go of what is still open, and waits for a moment."""
    left: list[Done] = []
    for link in links:
        done = link.done()
        with contextlib.suppress(StatestreamError):
            link.do(partial(leave, link.core, partial(done.set_result, None)))
            left.append(done)
    wait_for_all(left, CLOSE_SECONDS)


def close_all(links: Sequence[Link]) -> None:
    """Ends all connections; whatever is under way fails with Closed."""
    for link in links:
        link.close()


def abandon_all(links: Sequence[Link]) -> None:
    """The same of a client that nobody has any more, soon; waits for nothing."""
    for link in links:
        link.abandon()
