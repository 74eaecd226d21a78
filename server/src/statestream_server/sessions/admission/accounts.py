"""Accounts: the bytes that callers make the server hold, and who has to wait because of them.

What is under way on a stream is counted: inputs that came and have not been answered, with the answers they will come
to, until those are written, and whatever else waits for its reader. All of it drains without another word from the
client.

Of each model a stream has a window of such bytes, and one more for predictions. The open tells it, both sides count
alike, and the client's count begins before the server's and ends after it: so a client that keeps its windows is never
refused for load. What exceeds one is refused, OVERLOADED, and costs nobody else anything. Where all streams together
have more under way than the server holds, those that have most of it are not read on, until enough has drained. What
drains only by acknowledgements is in none of this, or their reading would wait for themselves: the replies kept for a
session have a window of their own.

Calls without a stream (unary steps, predictions, forecasts, texts) have a budget for each kind: one that is used up
refuses more of that kind, OVERLOADED with the time after which to try again, and no other.

What a server holds for its callers is at most

    max_queued_bytes + streams × (one message + the answer that it comes to)      under way on streams
  + 4 × max_queued_bytes                                                          calls beside them: see Budgets
  + sessions in memory × max_kept_bytes, as far as they do not acknowledge        kept replies
  + rows × the bytes of a row                                                     states

where a stream that has less than its share of `max_queued_bytes` is read on, however full the others are.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from statestream.contract import errors
from statestream_server.engine.line import Pace

OVERHEAD = 512
"""What a frame or a call costs beside its bytes: messages, tasks and columns around them."""
COPIES = 3
"""How often the inputs of a unary call are in memory while it is under way: as they came, in the message, as arrays."""
_RETRY_SECONDS = 0.1
MOST_WAIT = 0.5
"""Seconds that what comes without a stream may wait for its run; an answer that comes later is useless to most."""


FEW_COMING = 64
"""Sessions of a tenant that may come into memory at a time for calls without a stream, however long each takes."""
_CROWD = 16
"""Sessions that come at a time from which on the time between two ends tells of the pace: of fewer it tells how long
one takes, and many take hardly longer together."""


def _at_once(_tenant: str | None) -> float:
    return 0.0


class Accounts:
    """The accounts of all streams."""

    def __init__(self, most: int, window: int) -> None:
        """Streams may have `most` bytes under way together, and each of them `window` of each model."""
        self.most = most
        self.window = window
        self.held = 0
        """Bytes under way on all streams."""
        self.active = 0
        """Streams that have something under way."""
        self.waiting: dict[Account, asyncio.Future[None]] = {}
        self._looking = False

    def open(self) -> Account:
        """The account of a stream that has nothing under way."""
        return Account(self)

    def look_soon(self) -> None:
        """Has those who wait looked at in the next turn of the loop, once for all that was given back in this one."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        for account, room in list(self.waiting.items()):
            if not account.is_over:
                del self.waiting[account]
                if not room.done():
                    room.set_result(None)


class Account:
    """What one stream makes the server hold."""

    __slots__ = ("_house", "held")

    def __init__(self, house: Accounts) -> None:
        """Nothing is under way."""
        self.held = 0
        """Bytes under way: those of all its windows, and what else waits for the reader."""
        self._house = house

    def take(self, nbytes: int, window: Window | None = None) -> None:
        """Counts bytes that came under way, of a window those of chunks."""
        house = self._house
        if not self.held:
            house.active += 1
        self.held += nbytes
        house.held += nbytes
        if window is not None:
            window.held += nbytes

    def give(self, nbytes: int, window: Window | None = None) -> None:
        """Counts bytes that are not under way any more: those of chunks whose answer is being written, or has been."""
        house = self._house
        self.held -= nbytes
        if window is not None:
            window.held -= nbytes
        house.held -= nbytes
        if not self.held:
            house.active -= 1
        if house.waiting:
            house.look_soon()

    @property
    def is_over(self) -> bool:
        """Whether the stream is not to be read on; then wait for `room`.

        It is over where all have too much together and it has more than its share: so those with most wait first.
        """
        house = self._house
        return house.held > house.most and self.held > house.most // house.active

    def window(self) -> Window:
        """The window of one more model."""
        return Window(self._house.window)

    async def room(self) -> None:
        """Returns when the stream may be read on. One task of a stream waits at a time."""
        while self.is_over:
            room = self._house.waiting[self] = asyncio.get_running_loop().create_future()
            try:
                await room
            finally:
                self._house.waiting.pop(self, None)


@dataclass(slots=True)
class Window:
    """What one stream has under way of one model, and how much that may be.

    Attributes:
        most: Bytes that may be. One chunk with more has room where there is nothing else.
        held: Bytes that are.
    """

    most: int
    held: int = 0


class Budgets:
    """What calls without a stream may have under way, each kind by itself."""

    def __init__(self, most: int, wait: Callable[[str | None], float] = _at_once) -> None:
        """Steps, predictions and bodies over HTTP may hold `most` bytes each, what the server drives half of it.

        `wait` says how many seconds a step or a prediction of a tenant that comes now will wait, about.
        """
        self.steps = Budget("unary steps", most, wait)
        self.predictions = Budget("predictions", most, wait)
        self.bodies = Budget("bodies of HTTP requests and their answers", most)
        self.forecasts = Budget("forecasts", most // 2)
        self.texts = Budget("texts", most // 2)


class Budget:
    """The bytes that one kind of call may have under way, and how long one may wait."""

    def __init__(self, what: str, most: int, wait: Callable[[str | None], float] = _at_once) -> None:
        """`what` names the calls in messages; together they may hold `most` bytes. `wait` as for `Budgets`."""
        self.held = 0
        self.most = most
        self.late = 0
        """Calls that were refused because they would have waited too long."""
        self._what = what
        self._wait = wait

    def check(self, tenant: str | None = None, most: float = MOST_WAIT) -> None:
        """Checks that there is room at all, and time, before a request of a tenant is looked at closely.

        `most` is how many seconds it may wait.

        Raises:
            Overloaded: There is none, or it would wait too long.
        """
        if self.held >= self.most:
            raise self._full(OVERHEAD)
        if self.held and (wait := self._wait(tenant)) > most:
            raise self.too_late(wait, most)

    def too_late(self, wait: float, most: float) -> errors.Overloaded:
        """The error of a call that would wait for so many seconds, more than `most`; counts it."""
        self.late += 1
        wait = math.ceil(10 * wait) / 10  # Those who are refused at a time are told the same.
        return errors.Overloaded(
            f"this call would wait for {wait:.1f} s behind those that came before; the limit is {most:g} s. Call"
            " again later, or add a server",
            metadata={"limit": "wait"},
            retry_after=wait,
        )

    @contextmanager
    def holding(self, nbytes: int) -> Iterator[None]:
        """Counts a call's bytes while it is under way.

        Raises:
            Overloaded: With those under way it would be too much. One that finds nothing under way is let in.
        """
        nbytes += OVERHEAD
        if self.held and self.held + nbytes > self.most:
            raise self._full(nbytes)
        self.held += nbytes
        try:
            yield
        finally:
            self.held -= nbytes

    @contextmanager
    def growing(self, nbytes: int) -> Iterator[Callable[[int], None]]:
        """Counts a call's bytes while it is under way, and those that it comes to hold beside them.

        What this yields is called with how many more there are, and raises `Overloaded` where that is too much.

        Raises:
            Overloaded: See `holding`.
        """
        more = 0

        def grow(nbytes: int) -> None:
            nonlocal more
            if self.held > own + more and self.held + nbytes > self.most:
                raise self._full(nbytes)
            self.held += nbytes
            more += nbytes

        own = nbytes + OVERHEAD
        with self.holding(nbytes):
            try:
                yield grow
            finally:
                self.held -= more

    def _full(self, nbytes: int) -> errors.Overloaded:
        return errors.Overloaded(
            f"{self._what} under way hold {self.held} bytes and this one needs {nbytes}; the limit is {self.most}"
            " together. Call again later",
            retry_after=_RETRY_SECONDS,
        )


class Coming:
    """Sessions that calls without a stream bring into memory, each for one step: what the store does takes a while."""

    def __init__(self, budget: Budget, clock: Callable[[], float]) -> None:
        """None. `budget` is that of the calls; `clock` gives seconds that never go back."""
        self._budget = budget
        self._clock = clock
        self._pace = Pace()
        self._by_tenant = Counter[str]()
        self._since = 0.0

    def check(self, tenant: str) -> None:
        """Checks that there is time for one more of a tenant.

        Raises:
            Overloaded: It would wait too long behind others that come, of which some are the tenant's; or it would take
                time from sessions that are here already and have more to do than there is time for.
        """
        coming = self._by_tenant
        if coming[tenant] >= FEW_COMING and (wait := self._pace.wait(coming.total())) > MOST_WAIT:
            raise self._budget.too_late(wait, MOST_WAIT)
        self._budget.check(tenant, MOST_WAIT / 2)

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Counts a session of a tenant while it comes.

        Raises:
            Overloaded: See `check`.
        """
        self.check(tenant)
        coming = self._by_tenant
        coming[tenant] += 1
        if coming.total() == _CROWD:
            self._since = self._clock()
        try:
            yield
        finally:
            coming[tenant] -= 1
            if not coming[tenant]:
                del coming[tenant]
            if coming.total() >= _CROWD:
                before, self._since = self._since, self._clock()
                self._pace.note(1, self._since - before)
