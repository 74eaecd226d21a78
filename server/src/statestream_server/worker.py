"""One of several processes of a server: what its first process asks of it, and what it asks of that."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import Any, Final

from statestream.contract import errors
from statestream_server.channel import Channel, Gone
from statestream_server.server import Readiness, Server
from statestream_server.settings import StartError, reloaded

log = logging.getLogger(__name__)

_GONE_SECONDS: Final = 1.0


class Worker:
    """The worker's end of the channel.

    Attributes:
        left: Set when the first process asks it to leave, or is gone.
    """

    def __init__(self, connected: socket.socket) -> None:
        """Connected, and not listening yet."""
        self.left = asyncio.Event()
        self._connected = connected
        self._channel = Channel(self._answer)
        self._server: Server | None = None
        self._readiness = Readiness()
        self._joined = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name="channel")
        self._telling: asyncio.Task[None] | None = None

    async def join(self, server: Server, readiness: Readiness) -> None:
        """Loads what the other workers serve; the first one the newest of every model, which the others then serve.

        Raises:
            StartError: A version that others serve does not load here.
        """
        self._server, self._readiness = server, readiness
        server.selection.together = self._together
        try:
            found = await self._channel.ask("join")
            if found["models"] is None:
                await server.registry.load_all()
                failures = [[*key, text] for key, text in server.registry.failures.items()]
                await self._channel.ask("loaded", models=server.registry.chosen, failures=failures)
                self._joined.set()
                return
        except Gone:
            raise StartError("the process that started this one is gone") from None
        server.registry.failures.update({(name, version): text for name, version, text in found["failures"]})
        loads = [server.selection.serve(name, version) for name, version in found["models"]]
        for result in await asyncio.gather(*loads, return_exceptions=True):
            if isinstance(result, errors.StatestreamError):
                raise StartError(f"what the other workers serve does not load here: {result.message}")
            if isinstance(result, BaseException):
                raise result
        await server.registry.load_aliases()
        self._joined.set()
        self._telling = asyncio.create_task(self._tell_aliases(), name="aliases")

    async def _tell_aliases(self) -> None:
        """Has all take what the files of aliases say, as this one did: whoever set one last may have ended over it."""
        try:
            await self._channel.ask("aliases", name="", version=0)
        except (Gone, errors.StatestreamError) as error:
            log.debug("the aliases were not read anew in all workers: %r", error)

    async def failed(self) -> None:
        """Never returns while all is well.

        Raises:
            StatestreamError: This process could not do what all have decided: its successor comes up with it.
        """
        await asyncio.shield(self._failed)

    async def _run(self) -> None:
        await self._channel.run(self._connected)
        self.left.set()

    async def _together(self, what: str, name: str, version: int) -> object:
        try:
            return await self._channel.ask(what, name=name, version=version)
        except Gone:
            raise errors.Draining("the server is leaving", retry_after=_GONE_SECONDS) from None

    async def _answer(self, what: str, fields: Mapping[str, Any]) -> object:
        """Does what the first process asks."""
        if what == "leave":
            self.left.set()
            return None
        if self._server is None:
            raise errors.Unavailable("this worker is starting", retry_after=_GONE_SECONDS)
        if what == "status":
            return self._readiness.reason
        if what == "metrics":
            return _metrics(self._server)
        if what == "settings":
            logging.getLogger().setLevel(fields["log_level"])
            self._server.settings = reloaded(self._server.settings, fields["changes"])
            return None
        if what == "newest":
            return self._server.registry.newest()
        return await self._select(what, self._server, fields["name"], fields["version"])

    async def _select(self, what: str, server: Server, name: str, version: int) -> object:
        await self._joined.wait()  # What is asked now is about what was served before.
        selection = server.selection
        if what == "prepare":
            await selection.prepare(name, version)
        elif what == "give_up":
            selection.give_up(name, version)
        elif what == "serve":
            try:
                await selection.serve(name, version)
            except errors.StatestreamError as error:
                if not self._failed.done():
                    self._failed.set_exception(error)
                raise
        elif what == "idle":
            return await selection.idle(name, version)
        elif what == "withdraw":
            return await selection.withdraw(name, version)
        elif what == "aliases":
            return dict(await server.aliasing.reread(name))
        elif what == "restore":
            selection.restore(name, version)
        elif what == "forget":
            await self._forget(selection.withdraw, name, version)
            selection.forget(name, version)
        else:
            raise ValueError(f"nothing is called {what!r}")
        return None

    async def _forget(self, withdraw: Any, name: str, version: int) -> None:
        """Takes out of service what was loaded since the others withdrew it; what is in use here stays."""
        try:
            await withdraw(name, version)
        except (errors.ModelNotFound, errors.ModelInUse) as error:
            log.debug("%s", error.message)


def _metrics(server: Server) -> list[Any]:
    from statestream_server.edges.http.metrics import ServerCollector  # Only where somebody asks.

    return [
        [metric.name, metric.documentation, metric.type, [[one.name, one.labels, one.value] for one in metric.samples]]
        for metric in ServerCollector(server).collect()
    ]
