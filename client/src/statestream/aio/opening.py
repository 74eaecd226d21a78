"""Things that are opened by `await` or by `async with`, as the caller likes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar


class Closable(Protocol):
    """What `async with` leaves."""

    async def close(self) -> None:
        """Lets it go."""


C = TypeVar("C", bound=Closable)
P = ParamSpec("P")


class Opening(Generic[C]):
    """`x = await opening`, or `async with opening as x`, which closes x on leaving.

    Args:
        make: Opens it.
        what: What that is called.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, C]], what: str) -> None:
        self._make = make
        self._what = what
        self._begun = False
        self._made: C | None = None

    def __repr__(self) -> str:
        """What it is to be, and that it is not yet: notebooks and `print` show it to whoever forgot to await."""
        return f"<{self._what} that is not open yet: {self._hint}>"

    def __await__(self) -> Generator[Any, None, C]:
        self._begun = True
        return self._make().__await__()

    if not TYPE_CHECKING:  # A type checker is to find these mistakes by itself.

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"{name!r} of a {self._what} that is not open yet: {self._hint}", name=name, obj=self)

        def __enter__(self) -> NoReturn:
            raise TypeError(f"`with` opens no {self._what} of an asyncio client: {self._hint}")

        def __exit__(self, *_: object) -> None:
            """Is never reached; without it `with` would say something else."""

    def __del__(self) -> None:
        # Python tells of a coroutine that nobody awaited; this is the same mistake.
        if not self.__dict__.get("_begun", True):
            warnings.warn(f"a {self._what} was never opened: {self._hint}", RuntimeWarning, source=self, stacklevel=2)

    @property
    def _hint(self) -> str:
        return f"await it first (`{self._what} = await …`), or use `async with … as {self._what}`"

    async def __aenter__(self) -> C:
        self._begun = True
        self._made = await self._make()
        return self._made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            await self._made.close()


def opening(what: str) -> Callable[[Callable[P, Coroutine[Any, Any, C]]], Callable[P, Opening[C]]]:
    """Has a coroutine function that opens something, called `what`, return an Opening."""

    def decorate(make: Callable[P, Coroutine[Any, Any, C]]) -> Callable[P, Opening[C]]:
        @functools.wraps(make)
        def open(*args: P.args, **kwargs: P.kwargs) -> Opening[C]:
            return Opening(functools.partial(make, *args, **kwargs), what)

        return open

    return decorate
