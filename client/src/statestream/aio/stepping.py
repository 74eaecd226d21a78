"""Steps under way: what a caller, or a stream of steps, waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from statestream import causes
from statestream.aio.link import Link
from statestream.aio.waiting import Done
from statestream.calls import check_pool
from statestream.contract.errors import StatestreamError
from statestream.core import PoolTicket, Ticket
from statestream.layout import Layout
from statestream.parts import Share, merge
from statestream.scores import scored


class Stepping:
    """A step of a session under way."""

    __slots__ = ("_done", "_id", "_layout", "_link", "_score", "_ticket")

    def __init__(self, link: Link, layout: Layout, id: str, ticket: Ticket, done: Done, score: bool = False) -> None:
        self._link = link
        self._layout = layout
        self._id = id
        self._ticket = ticket
        self._done = done
        self._score = score

    def pending(self) -> Done | None:  # asyncio only
        """What it waits for; None when it is done."""
        return None if self._done.done() else self._done

    async def answer(self) -> Any:
        """Waits until it is done; its outputs."""
        try:
            await self._done
        except BaseException:
            self.forget()
            raise
        if self._ticket.error is not None:
            raise causes.of_step(self._layout, self._ticket, self._id)
        return scored(self._ticket.value) if self._score else self._ticket.value

    def forget(self) -> None:
        """Drops it where it is not on its way yet and has nothing behind it."""
        self._link.forget(self._ticket)


class PoolStepping:
    """A step of a pool under way, by all shards that have a share of it.

    Args:
        layout: The pool's.
        ticket: The step.
        single: Whether it has one step a row, without an axis for time.
        shares: What each shard has of it.
        return_errors: A PoolError is its answer, not raised.
        who: The id of a row of the step.
        told: What makes of the outputs what its caller gets, where that is no array.
    """

    def __init__(
        self,
        layout: Layout,
        ticket: PoolTicket,
        single: bool,
        shares: Sequence[Share[Link]],
        return_errors: bool,
        who: Callable[[int], str],
        told: Callable[[Any], Any] | None = None,
    ) -> None:
        self._layout = layout
        self._ticket = ticket
        self._single = single
        self._shares = shares
        self._return_errors = return_errors
        self._who = who
        self._told = told
        self._under_way: list[tuple[Share[Link], Done]] = []
        for share in shares:
            try:
                self._under_way.append((share, share.link.begin(share.ticket)))
            except StatestreamError as error:
                share.ticket.finish(error=error)

    def pending(self) -> Done | None:  # asyncio only
        """What it waits for next; None when it is done."""
        return next((done for _, done in self._under_way if not done.done()), None)

    async def answer(self) -> Any:
        """Waits until all shards are done; the outputs, or the PoolError where that is an answer."""
        try:
            for _, done in self._under_way:
                await done
        except BaseException:
            self.forget()
            raise
        merge(self._ticket, self._shares)
        return check_pool(
            self._layout, self._ticket, self._single, self._who, self._told, return_errors=self._return_errors
        )

    def forget(self) -> None:
        """Stops waiting; what was submitted is applied."""
        for share, _ in self._under_way:
            if not share.ticket.done:
                share.link.forget(share.ticket)
