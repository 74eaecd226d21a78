"""The synchronous and the asyncio client have the same methods, and the package the names that it promised."""

from __future__ import annotations

import inspect

import pytest

import statestream
from statestream import aio, errors


def public(thing: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in inspect.getmembers(thing, callable)
        if not name.startswith("_")
    }


@pytest.mark.parametrize("name", ["Client", "Session", "Pool"])
def test_the_twins_have_the_same_methods_with_the_same_parameters(name: str) -> None:
    assert public(getattr(statestream, name)) == public(getattr(aio, name))
    assert inspect.signature(statestream.connect).parameters == inspect.signature(aio.connect).parameters


def test_public_names_are_pinned() -> None:
    assert aio.__all__ == ["Client", "Pool", "Session", "connect"]
    kinds = {error.__name__ for error in errors.REASONS.values()} | {"StatestreamError"}
    own = {"Client", "Pool", "PoolError", "PoolStep", "Session", "Settings", "connect", "aio", "errors", "__version__"}
    views = {"Limits", "Model", "ServerInfo", "SessionInfo"}
    assert set(statestream.__all__) == kinds | own | views
    assert all(hasattr(statestream, name) for name in statestream.__all__)
