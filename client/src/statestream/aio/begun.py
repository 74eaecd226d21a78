"""A coroutine that was begun where it was made, and goes on where it is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class Begun:
    """Runs a coroutine up to its first wait at once. What it raises until then is raised where it is awaited.

    A task would run it only in the next turn of the loop. It may be awaited once, by any task of the same loop.
    """

    __slots__ = ("_coroutine", "_error", "_first")

    def __init__(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self._coroutine: Coroutine[Any, Any, object] | None = coroutine
        self._error: Exception | None = None
        try:
            self._first = coroutine.send(None)
        except StopIteration:
            self._coroutine = None
        except Exception as error:
            self._coroutine, self._error = None, error

    def __await__(self) -> Generator[Any, Any, None]:
        if self._error is not None:
            raise self._error
        coroutine, waits = self._coroutine, self._first if self._coroutine is not None else None
        while coroutine is not None:
            try:
                try:
                    sent = yield waits
                except BaseException as error:
                    waits = coroutine.throw(error)
                else:
                    waits = coroutine.send(sent)
            except StopIteration:
                return

    def drop(self) -> None:
        """Ends it where it waits; for one that nobody will await, else what becomes of its wait would be nobody's."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is None:
            return
        if asyncio.isfuture(self._first):
            self._first.cancel()
        coroutine.close()
