"""Feeds: steps of a pool that follow one another without waiting for answers."""

from __future__ import annotations

import numpy as np

from statestream.contract.errors import StatestreamError
from statestream.contract.tensors import Ints


class Feed:
    """Which sessions are out of a feed: one whose chunk failed takes no part in the steps after it.

    Steps are on their way before the answers to earlier ones are there. If a session whose chunk was refused went on
    with whatever is submitted next, which of its chunks are missing would depend on how fast answers come. So what was
    applied of a session is what came before its first failure, always.
    """

    def __init__(self) -> None:
        self._failures: dict[int, StatestreamError] = {}
        self._parts: dict[int, Feed] = {}

    def fail(self, handle: int, error: StatestreamError) -> None:
        """Takes a session out; its first error stays."""
        self._failures.setdefault(handle, error)

    def out(self, handles: Ints) -> dict[int, StatestreamError]:
        """An error for each row of `handles` whose session is out."""
        if not self._failures:
            return {}
        rows = np.flatnonzero(np.isin(handles, list(self._failures))).tolist()
        return {row: left_out(self._failures[handles.item(row)]) for row in rows}

    def part(self, number: int) -> Feed:
        """The part of the feed that goes by one of several shards, whose handles are its own."""
        return self._parts.setdefault(number, Feed())


def left_out(error: StatestreamError) -> StatestreamError:
    """The error of chunks that were not submitted any more."""
    return type(error)(
        f"an earlier step of this stream failed, so this one was not applied: {error.message}",
        metadata=error.metadata,
        retry_after=error.retry_after,
    )
