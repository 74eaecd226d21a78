"""The store: the memory store's rules behind a way that is slow, fails before or after it is done, or stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from statestream.contract.errors import StoreUnavailable
from statestream_server.stores.base import Claim, Claimed, Key, Peer, Record, Survival
from statestream_server.stores.memory import MemoryStore
from tests.simulation.loop import NOWHERE, RUNNING, Loop, Process

TIMEOUT = 2.0
"""Seconds after which whoever asks the store takes it for away."""


class Shelf:
    """What is stored, whoever asks, and how the store is at the moment.

    Attributes:
        slow: Seconds that each way takes at most.
        failing: How often it fails, before what was asked is done or after.
        paused_until: When it goes on, where it stands still.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.slow = 0.002
        self.failing = 0.0
        self.paused_until = 0.0
        self.inside = MemoryStore(clock=lambda: 1e9 + loop.time())

    async def ask(self, process: Process, what: str, work: Callable[[int | None], Any], count: int) -> Any:
        """Asks the store; what left before a process was killed may still be done."""
        loop, draw = self.loop, self.loop.draw
        answered: asyncio.Future[Any] = loop.create_future()
        fails, before = draw.random() < self.failing, draw.random() < 0.5
        go, back = draw.random() * self.slow, draw.random() * self.slow
        # Of a batch that fails some may be done.
        part = draw.randrange(count + 1) if fails and count > 1 else 0 if fails and before else None

        def do() -> None:
            if loop.time() < self.paused_until:
                loop.at(self.paused_until + draw.random() * self.slow, do, context=NOWHERE)
                return
            loop.trace("store", process.name, what, "fails" if fails else "", "" if part is None else part)
            result = work(part)
            if not fails:
                loop.at(loop.time() + back, tell, result, context=process.context)

        def tell(result: Any) -> None:
            if not answered.done():
                answered.set_result(result)

        def give_up() -> None:
            if not answered.done():
                answered.set_exception(StoreUnavailable(f"the store did not answer to {what}"))

        loop.at(loop.time() + go, do, context=NOWHERE)
        timer = loop.at(loop.time() + (go + back if fails else TIMEOUT), give_up, context=process.context)
        try:
            return await answered
        finally:
            timer.cancel()


class Store:
    """A server's connection to the shelf."""

    kind = "sqlite"
    survives = Survival(process_kill=True, power_loss=True, failover=False)

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._process = shelf, RUNNING.get()

    async def _ask(self, name: str, *columns: Sequence[Any], others: Sequence[Any] = ()) -> Any:
        inside, count = self._shelf.inside, len(columns[0]) if columns else 1

        def work(part: int | None) -> Any:
            if part == 0:
                return None
            some = columns if part is None else tuple(column[:part] for column in columns)
            return _now(getattr(inside, name)(*some, *others))

        what = f"{name} {_about(name, columns)}"
        return await self._shelf.ask(self._process, what, work, count)

    async def start(self) -> None:
        """Connects to nothing."""

    async def close(self) -> None:
        """What is stored stays."""

    async def generation(self) -> str:
        """As of the memory store."""
        found: str = await self._ask("generation")
        return found

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed]:
        """As of the memory store."""
        found: list[Claimed] = await self._ask("claim", claims)
        return found

    async def save(self, records: Sequence[Record]) -> list[bool]:
        """As of the memory store."""
        if not records:
            return []
        found: list[bool] = await self._ask("save", records)
        return found

    async def load(self, keys: Sequence[Key]) -> list[Record | None]:
        """As of the memory store."""
        found: list[Record | None] = await self._ask("load", keys)
        return found

    async def heads(self, keys: Sequence[Key]) -> list[Record | None]:
        """As of the memory store."""
        found: list[Record | None] = await self._ask("heads", keys)
        return found

    async def touch(self, keys: Sequence[Key], epochs: Sequence[int]) -> None:
        """As of the memory store."""
        await self._ask("touch", keys, epochs)

    async def delete(self, keys: Sequence[Key], epochs: Sequence[int], incarnations: Sequence[int]) -> list[bool]:
        """As of the memory store."""
        found: list[bool] = await self._ask("delete", keys, epochs, incarnations)
        return found

    async def list(self, tenant: str, model: str, after: tuple[str, str], limit: int) -> list[Record]:
        """As of the memory store."""
        found: list[Record] = await self._ask("list", others=(tenant, model, after, limit))
        return found

    async def expire(
        self,
        before: float,
        *,
        ephemeral_before: float,
        tombs_before: float | None = None,
        by_model: Mapping[str, float] | None = None,
    ) -> int:
        """Nothing expires: ages are housekeeping's tests' affair."""
        return 0

    async def beat(self, owner: str, address: str, ttl: float, sessions: int = 0) -> None:
        """As of the memory store."""
        await self._ask("beat", others=(owner, address, ttl, sessions))

    async def leave(self, owner: str) -> None:
        """As of the memory store."""
        await self._ask("leave", others=(owner,))

    async def address_of(self, owner: str) -> str | None:
        """As of the memory store."""
        found: str | None = await self._ask("address_of", others=(owner,))
        return found

    async def peers(self) -> Sequence[Peer]:
        """As of the memory store."""
        found: Sequence[Peer] = await self._ask("peers")
        return found


def _about(name: str, columns: Sequence[Sequence[Any]]) -> str:
    if name == "claim":
        return " ".join(f"{c.key.id}/{c.mode.name}/{c.incarnation}/{c.held_epoch}" for c in columns[0])
    if name == "save":
        return " ".join(f"{r.key.id}/{r.epoch}/{r.position}" for r in columns[0])
    return " ".join(key.id for key in columns[0]) if columns else ""


def _now(work: Any) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the memory store waited")
