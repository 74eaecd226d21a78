"""When callers hear that the server gets them nowhere: pure, so that both edges do the same."""

from __future__ import annotations

from collections.abc import Sequence

from statestream.calls import unavailable
from statestream.contract import errors
from statestream.contract.errors import StatestreamError

MAX_FAULTS = 5
"""How many streams in a row may end by a fault of the server, with no caller answered in between."""


class RetryBudget:
    """Measures how long callers wait without an answer; to be connected again is no answer.

    Args:
        timeout: Seconds that an operation outlasts a server that does not answer it.
        addresses: Where servers were looked for.
        label: Which shard of its client it is, as messages say it.
    """

    def __init__(self, timeout: float, addresses: Sequence[str], label: str = "") -> None:
        self._timeout = timeout
        self._addresses = addresses
        self._label = label
        self._since: float | None = None
        self._progress = 0
        self._faults = 0
        self._fault: StatestreamError | None = None

    def ended(self, cause: StatestreamError | None, progress: int) -> None:
        """A stream ended; `progress` is how many answers callers had by then."""
        self._note(progress)
        if is_fault(cause):
            self._faults, self._fault = self._faults + 1, cause

    def verdict(
        self, *, busy: bool, progress: int, now: float, cause: StatestreamError | None
    ) -> StatestreamError | None:
        """What callers who wait now are told, or None while they may go on waiting."""
        self._note(progress)
        if not busy:
            self._reset()
            return None
        if self._since is None:
            self._since = now
        waited = now - self._since
        fault = self._fault
        if fault is not None and (self._faults >= MAX_FAULTS or waited > self._timeout):
            self._reset()
            return type(fault)(
                f"the server{self._label} ended every stream without an answer for {waited:.1f} s, at last with: "
                f"{fault.message}",
                metadata=fault.metadata,
            )
        if waited > self._timeout:
            self._reset()
            return unavailable(self._addresses, waited, cause, self._label)
        return None

    def _note(self, progress: int) -> None:
        if progress != self._progress:
            self._progress = progress
            self._reset()

    def _reset(self) -> None:
        self._since, self._faults, self._fault = None, 0, None


def look_after(timeout: float) -> float:
    """Seconds between two looks for operations that the server does not answer within `timeout`."""
    return min(5.0, max(0.05, timeout / 8))


def silence(where: str, timeout: float) -> StatestreamError:
    """Why a stream was ended on which callers waited and nothing came."""
    return errors.ServerUnavailable(f"{where} did not answer anything for {timeout:g} s, though the connection stands")


def is_fault(cause: StatestreamError | None) -> bool:
    """Whether a stream ended by what the server met in it, not because a server or the way to it is away."""
    return cause is not None and not isinstance(cause, errors.Unavailable | errors.Closed | errors.SlowReader)
