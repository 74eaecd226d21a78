"""What the tool that makes the synchronous client of the asyncio one does, and the names that the package promised."""

from __future__ import annotations

import inspect

import pytest
import twins

import statestream
from statestream import aio, errors

WRITTEN = '''
class Reader:
    @opening("reader")  # asyncio only
    @contextlib.asynccontextmanager
    async def read(self, items: Iterable[X[T]] | AsyncIterable[X[T]]) -> Opening[AsyncIterator[X[T]]]:
        """Awaits nothing in here: async for, await."""
        if isinstance(items, AsyncIterable):  # asyncio only
            return await live(
                items
            )
        async with self.lock, self.gate() as gate:
            await self.done
            first = await self.done.begin(gate)
            return [each async for each in await call(make[0])]

    def pending(self) -> Done | None:  # asyncio only
        return None
'''

GENERATED = '''
class Reader:
    @contextlib.contextmanager
    def read(self, items: Iterable[X[T]]) -> Iterator[X[T]]:
        """Awaits nothing in here: async for, await."""
        with self.lock, self.gate() as gate:
            self.done.wait()
            first = self.done.begin(gate)
            return [each for each in call(make[0])]

'''


def test_a_module_gets_its_synchronous_form() -> None:
    assert twins.synchronous(WRITTEN) == GENERATED


def test_what_a_synchronous_client_has_nothing_of_is_found() -> None:
    """In docstrings, which the tool does not read."""
    for left in ("of an asyncio client", "from statestream.aio", "When the task is cancelled", "an AsyncIterable"):
        assert twins.LEFT.search(left)
    assert not twins.LEFT.search("Sessions of a synchronous client, which waits.")


@pytest.mark.parametrize("opener", ["session", "sessions", "restore"])
def test_openers_say_their_parameters(opener: str) -> None:
    """What has them wait, or enter, stands behind the public method and hides nothing of it."""
    ours, theirs = (inspect.signature(getattr(package.Client, opener)) for package in (statestream, aio))
    assert ours.parameters == theirs.parameters


def test_public_names_are_pinned() -> None:
    assert aio.__all__ == ["Client", "Pool", "Session", "connect", "local"]
    kinds = {error.__name__ for error in errors.REASONS.values()} | {"StatestreamError"}
    own = {
        "Client",
        "Pool",
        "PoolError",
        "PoolStep",
        "Session",
        "Settings",
        "Tls",
        "connect",
        "aio",
        "errors",
        "local",
        "__version__",
    }
    views = {
        "Backtest",
        "Class",
        "Generated",
        "GeneratedToken",
        "Latest",
        "Limits",
        "Model",
        "Scored",
        "Scores",
        "ServerInfo",
        "SessionInfo",
    }
    assert set(statestream.__all__) == kinds | own | views
    assert all(hasattr(statestream, name) for name in statestream.__all__)
