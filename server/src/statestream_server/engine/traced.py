"""What the engine tells a tracer of its runs. No libraries here: tracing.py has them, where it is configured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol


class Ran(NamedTuple):
    """A batch that ended.

    Attributes:
        model: Of which model; "" for calls without rows.
        version: Which version; 0 for these.
        rows: Its rows.
        steps: The steps of each.
        kind: Its class.
        waited: Seconds that its oldest work waited.
        began: When it began, by the performance counter.
        total: Seconds that it took.
        first: When the model began to run; 0 where that is not known.
        seconds: Seconds that the model took.
    """

    model: str
    version: int
    rows: int
    steps: int
    kind: str
    waited: float
    began: float
    total: float
    first: float
    seconds: float


class Tracer(Protocol):
    """Who makes spans of what runs; what calls and frames are to it, nobody else looks into."""

    def current(self) -> Sequence[Any]:
        """The calls and frames that what runs now is part of."""

    def within(self, unders: Sequence[Any]) -> AbstractContextManager[None]:
        """Work that is queued in the block is part of these."""

    def queued(self) -> Sequence[Any]:
        """The calls and frames that work which is queued now is part of; `ended` hears of it once."""

    def ended(self, unders: Sequence[Any]) -> None:
        """Such work ended."""

    def ran(self, unders: Sequence[Any], ran: Ran) -> None:
        """A batch of such work ended just now."""
