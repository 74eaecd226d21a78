"""Company: whether the few chunks that came wait for others that keep coming, before they make a batch."""

from __future__ import annotations

from typing import Final

MANY: Final = 64
"""Chunks that are worth a batch without a look at what else comes."""
MOST_TURNS: Final = 16
"""Turns of the loop that a few chunks wait at most, for company that keeps coming."""
VAIN: Final = 16
"""Chunks in a row that waited for company and had none; then one that comes alone waits no more, until one has some."""


class Company:
    """What came since the last batch, counted by turns of the loop."""

    __slots__ = ("_gathered", "_turns", "_vain", "arrived")

    def __init__(self) -> None:
        """Nothing came."""
        self.arrived = 0
        """Chunks or calls that came in this turn."""
        self._gathered = self._turns = self._vain = 0

    def keeps_coming(self, *, backlog: bool) -> bool:
        """Whether a turn that brought something is worth another before a batch runs.

        A few chunks cost a batch as much as a hundred. While each turn of the loop brings more, and they are few,
        the next costs less than a batch. Nothing is waited for: an idle loop runs at once what it has. Nor is it where
        something waits already (`backlog`): what came too much would be all that is done.
        """
        arrived, self.arrived = self.arrived, 0
        self._gathered += arrived
        self._turns += 1
        lone = self._gathered == 1
        if (
            arrived
            and not backlog
            and self._gathered < MANY
            and self._turns < MOST_TURNS
            and not (lone and self._vain >= VAIN)
        ):
            return True
        if self._gathered:
            self._vain = self._vain + 1 if lone else 0
        self._gathered = self._turns = 0
        return False
