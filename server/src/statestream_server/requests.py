"""How many calls were answered, with which code, and how long they took: what every edge counts when a call ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

DURATIONS: Final = 26
"""Durations by powers of two of microseconds: below 1, 2, 4, … up to 33 s."""
_MOST_MODELS: Final = 1000
"""Names of models that are told apart, so that what callers write makes no series without end."""


class Kind:
    """Calls of one method and model that ended with one code.

    Attributes:
        counts: Calls by their duration: index i has those of less than 2**i µs. Streams are in it with the time that
            they were connected.
        total: Seconds of all.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        """None yet."""
        self.counts = [0] * DURATIONS
        self.total = 0.0


class Requests:
    """What was asked so far, by method, model and code."""

    def __init__(self, serves: Callable[[str], bool]) -> None:
        """Nothing; `serves` says whether a model of a name serves here: others are counted under no name."""
        self.kinds: dict[tuple[str, str, str], Kind] = {}
        self.under_way = 0
        """Calls and streams that were let in and have not ended."""
        self._serves = serves
        self._models = set[str]()

    def count(self, method: str, model: str, code: str, seconds: float) -> None:
        """Counts a call that ended.

        Args:
            method: `service/Method`.
            model: The name that the caller wrote, "" for none.
            code: The name of the status.
            seconds: How long it took.
        """
        if model and model not in self._models:
            if len(self._models) < _MOST_MODELS and self._serves(model):
                self._models.add(model)
            else:
                model = ""
        kind = self.kinds.get((method, model, code))
        if kind is None:
            kind = self.kinds[method, model, code] = Kind()
        kind.counts[min(int(seconds * 1e6).bit_length(), DURATIONS - 1)] += 1
        kind.total += seconds
