"""Where to connect next, how long to wait before, and who hears of it: without I/O, so that both edges do the same."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

log = logging.getLogger("statestream")

FIRST = 0.05
"""Seconds: the most that the first wait takes."""

MOST = 1.0
"""Seconds: the most that any wait takes."""

STABLE_SECONDS = 1.0
"""A stream that lasted so long is opened again at once, and at the same address."""


class Backoff:
    """Where to connect next, and when: both are drawn, so that a crowd of clients spreads over servers and time.

    The first address is the first of the list. From there it goes to others at random, each once in a round: were it
    the next one, all clients of a server that fails would meet at its neighbour. Waits grow exponentially, with full
    jitter.
    """

    def __init__(
        self, addresses: tuple[str, ...], most: float = MOST, draw: Callable[[], float] = random.random
    ) -> None:
        """`draw` gives numbers in [0, 1)."""
        self.addresses = addresses
        self.most = most
        self.failures = 0
        self.broke = False
        self._at = 0
        self._untried: list[int] = []
        self._draw = draw

    @property
    def address(self) -> str:
        """The address to try now."""
        return self.addresses[self._at]

    def succeeded(self) -> None:
        """A server answered."""
        self.failures = 0
        self._untried = []

    def failed(self) -> float:
        """Moves to another address; seconds to wait before it. The first round over all of them has no wait."""
        self._move()
        self.failures += 1
        rounds = self.failures // len(self.addresses)
        if not rounds:
            return 0.0
        return self._draw() * min(self.most, FIRST * 2.0 ** min(rounds - 1, 16))

    def ended(self, lasted: float, *, fault: bool) -> float:
        """A stream broke; seconds to wait before the next. The same server comes first where its streams last."""
        self.broke = True
        if lasted > STABLE_SECONDS and not fault:
            self.succeeded()
            return 0.0
        return self.failed()

    def leave(self) -> None:
        """Moves to another address because the server asked for it."""
        self._move()

    def _move(self) -> None:
        if not self._untried:
            self._untried = [number for number in range(len(self.addresses)) if number != self._at]
        if self._untried:
            self._at = self._untried.pop(int(self._draw() * len(self._untried)))


def tell(on_reconnect: Callable[[str], None] | None, backoff: Backoff, label: str) -> None:
    """Tells that a connection is there again; what the caller's function raises ends nothing.

    Whoever was warned that it broke hears of it as loud.
    """
    address = backoff.address
    log.log(logging.WARNING if backoff.broke else logging.INFO, "connected to %s again", address + label)
    backoff.broke = False
    if on_reconnect is not None:
        try:
            on_reconnect(address)
        except Exception:
            log.exception("on_reconnect failed")
