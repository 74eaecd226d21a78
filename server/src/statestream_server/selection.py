"""The models that serve: chosen and let go at run time, in one process, or in all of a server or in none."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from statestream.contract import errors
from statestream_server.catalog import Served
from statestream_server.models.files.repository import Found
from statestream_server.registry import Registry
from statestream_server.sessions.ownership.sessions import Sessions

log = logging.getLogger(__name__)

Together = Callable[[str, str, int], Awaitable[Any]]
"""Does "load", "unload" or "aliases" with a model's version in all processes of a server."""


class Selection:
    """Loads and unloads what callers ask for, and carries out what all processes decided."""

    def __init__(self, registry: Registry, sessions: Sessions) -> None:
        """Of one process, which decides by itself as long as `together` is None."""
        self._registry = registry
        self._sessions = sessions
        self.together: Together | None = None

    async def load(self, name: str, version: int = 0, alias: str = "") -> Served:
        """Loads a version from the models folder, by number or alias, 0 for the highest there; everywhere, or nowhere.

        A load that has begun ends, whoever is cancelled.

        Raises:
            ModelNotFound, Unsupported: It cannot be loaded, here or in another process; nothing changed.
        """
        version = self._registry.number(name, version, alias)
        if self.together is None:
            served = await self._registry.load(name, version)
            self._registry.choose(name, served.model.version)
            return served
        number = self._registry.find(name, version)
        await self.together("load", name, number)
        return self._registry.get(name, number)

    async def load_found(self, found: Found) -> None:
        """Loads a version that lies there; see `load`.

        Raises:
            Unsupported: It cannot be loaded, here or in another process; nothing changed.
        """
        if self.together is None:
            await self._registry.load_found(found)
            self._registry.choose(found.name, found.version)
        else:
            await self.together("load", found.name, found.version)

    async def unload(self, name: str, version: int = 0, alias: str = "") -> None:
        """Unloads a version, 0 for every one, after the loads of it that were asked for before; everywhere or nowhere.

        Raises:
            ModelNotFound, ModelInUse: It stays as it is.
        """
        version = self._registry.number(name, version, alias)
        if self.together is not None:
            await self.together("unload", name, version)
            return
        for number in await self.withdraw(name, version):
            self.forget(name, number)

    async def reload(self) -> None:
        """Loads the newest version of every model in the folder; what fails is told in the log."""
        for name, version in self._registry.newest():
            try:
                await self.load(name, version)
            except errors.StatestreamError as error:
                log.error("%s", error.message)

    async def prepare(self, name: str, version: int) -> None:
        """Makes a version ready to serve; nobody sees it before `serve`.

        Raises:
            ModelNotFound, Unsupported: It cannot be loaded.
        """
        await self._registry.prepare(name, version)

    def give_up(self, name: str, version: int) -> None:
        """Forgets what was prepared."""
        self._registry.give_up(name, version)

    async def serve(self, name: str, version: int) -> Served:
        """Serves a version from now on, by default where it is the highest.

        Raises:
            ModelNotFound, Unsupported: It cannot be loaded.
        """
        served = await self._registry.load(name, version)
        self._registry.choose(name, version)
        return served

    async def idle(self, name: str, version: int) -> list[int]:
        """A version, 0 for every one, that could be unloaded now, after the loads of it that were asked for before.

        Raises:
            ModelNotFound, ModelInUse: It could not.
        """
        await self._registry.settled(name)
        return self._registry.idle(name, version)

    async def withdraw(self, name: str, version: int) -> list[int]:
        """Takes a version, 0 for every one, out of service until it is forgotten or restored; which these are.

        Raises:
            ModelNotFound, ModelInUse: It stays as it is.
        """
        await self._registry.settled(name)
        return self._registry.withdraw(name, version)

    def restore(self, name: str, version: int) -> None:
        """Puts a version that was withdrawn back into service."""
        self._registry.restore(name, version)

    def forget(self, name: str, version: int) -> None:
        """Ends a version that was withdrawn; one that came into use meanwhile stays for the sessions that have it."""
        table = self._registry.forget(name, version)
        if table is not None:
            self._sessions.unloaded(table)
