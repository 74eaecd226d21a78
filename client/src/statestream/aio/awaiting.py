"""Calls that were not awaited: what is done with one in place of its answer says so."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, NoReturn, TypeVar

C = TypeVar("C", bound=type)

BARE: Final = frozenset({"step"})
"""Calls that stay plain coroutines: what stands around one costs more than half a microsecond, of some forty a step."""

_OF_COROUTINES: Final = ("cr_", "__name__", "__qualname__")
"""Names that debuggers and tasks ask a coroutine for."""


class Call(Coroutine[Any, Any, Any]):
    """A call's coroutine; awaited or made a task it is like any other."""

    __slots__ = ("__weakref__", "_coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, None, Any]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """Goes on, as a task does."""
        return self._coroutine.send(value)

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        trace: TracebackType | None = None,
    ) -> Any:
        """Goes on with an error, as a task does."""
        if isinstance(kind, BaseException):
            return self._coroutine.throw(kind)
        return self._coroutine.throw(kind, value, trace)

    def close(self) -> None:
        """Ends it."""
        self._coroutine.close()

    def __repr__(self) -> str:
        return f"<{self._name}() of an asyncio client, not awaited>"

    @property
    def _name(self) -> str:
        name: str = getattr(self._coroutine, "__name__", "call")
        return name

    @property
    def _hint(self) -> str:
        name = self._name
        return f"{name}() of an asyncio client was not awaited: await it first (`answer = await ….{name}(…)`)"

    def __getattr__(self, name: str) -> Any:
        if name.startswith(_OF_COROUTINES):
            return getattr(self._coroutine, name)
        raise AttributeError(f"no {name!r} in what is not there yet: {self._hint}", name=name, obj=self)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(self._hint)

    __getitem__ = __iter__ = __aiter__ = __len__ = __contains__ = __array__ = __float__ = __int__ = __index__ = _refuse
    __enter__ = __exit__ = __aenter__ = __aexit__ = _refuse


def hinting(owner: C) -> C:
    """Has the public coroutine functions of a class, and those it inherits, return a Call; but for those of BARE.

    Their types stay what they are: a type checker finds a forgotten await by itself.
    """
    for name in dir(owner):
        function = inspect.getattr_static(owner, name)
        if not name.startswith("_") and name not in BARE and inspect.iscoroutinefunction(function):
            setattr(owner, name, _hinted(function))
    return owner


def _hinted(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        return Call(function(*args, **kwargs))

    # Mocks and frameworks ask whether it is one.
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(call)
    call._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return call
