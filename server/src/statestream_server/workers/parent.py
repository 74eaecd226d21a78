"""The first process of a server with several: it starts workers, watches them, and speaks for all of them.

Each worker has its own engine and rows; the kernel spreads connections over them, and the store lets any of them take a
session over. Models, settings and metrics are those of all: see crew.py and pages.py.

Workers hear from this process by a channel each. Where it closes they leave: also when this process is killed, so that
none is left behind. They are asked to leave over it, not by a second signal where a terminal or a service manager has
sent one to every process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import multiprocessing
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from statestream.contract import errors
from statestream_server import logs, process
from statestream_server.channel import Channel, Gone
from statestream_server.settings import (
    Settings,
    StartError,
    changes,
    check_console,
    check_models,
    check_reach,
    has_console,
)
from statestream_server.workers.crew import Crew
from statestream_server.workers.pages import WorkersPages

if TYPE_CHECKING:
    from statestream_server.edges.http.port import Http
    from statestream_server.workers.relay import Relay

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a worker that ended is started again; doubled each time."""
_STEADY_SECONDS = 60.0
"""A worker that ran as long starts again after the first pause."""
_LOOK_SECONDS: Final = 1.0
"""How often workers are asked how they are."""
_STARTING: Final = "starting"


def run(settings: Settings, count: int, log_level: str, reread: process.Reread) -> int:
    """Runs workers until SIGTERM or SIGINT; returns the exit status.

    Args:
        settings: Of every worker; port and store are shared.
        count: How many.
        log_level: How much they tell.
        reread: Reads settings and log level anew.

    Raises:
        StartError: Others than this machine would reach them, and nobody said that they may; or there are no models.
        OSError: A port is taken.
    """
    logs.to_stderr(log_level, settings.log_format)
    check_reach(settings)
    check_console(settings)
    check_models(settings)
    with _reserved(settings) as port:
        return asyncio.run(_Parent(settings, count, log_level, reread, port).run())


class _Worker:
    """One worker, and the process that it is at the moment, if any.

    Attributes:
        index, restarts, reason, heard: See `pages.Worker`.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.restarts = 0
        self.reason = _STARTING
        self.heard: float | None = None
        self.pause = _FIRST_PAUSE
        self.started = 0.0
        self.process: SpawnProcess | None = None
        self.channel: Channel | None = None

    async def ask(self, what: str, **fields: Any) -> Any:
        """Asks it; see `Channel.ask`."""
        if self.channel is None:
            raise Gone
        return await self.channel.ask(what, **fields)


class _Parent:
    """The workers, and when each may start again."""

    def __init__(self, settings: Settings, count: int, log_level: str, reread: process.Reread, port: int) -> None:
        # Spawned, not forked: no gRPC object may exist when a process forks.
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._read = settings
        self._settings = dataclasses.replace(settings, port=port, reuse_port=True, http_port=None)
        self._log_level = log_level
        self._reread = reread
        self._workers = [_Worker(index) for index in range(count)]
        self._crew = Crew(self._start_others)
        self._ended = asyncio.Event()
        self._stopping = False
        self._status = 0
        self._tasks = set[asyncio.Task[None]]()
        self._relay: Relay | None = None

    async def run(self) -> int:
        """Keeps the workers running until they are asked to leave; 0 where all left in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        if not process.on_terminal():
            loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self._reload()))
        async with AsyncExitStack() as leaving:
            if self._read.http_port is not None:
                http = self._http(leaving)
                leaving.push_async_callback(http.close)
                await http.start()
                log.info("of all workers: %s", self._read.http_pages(http.port))
            # The first one finds out what of the models folder serves; the others then serve the same.
            self._start(self._workers[0])
            await self._ended.wait()
        for task in self._tasks:
            task.cancel()
        return self._status

    def _http(self, leaving: AsyncExitStack) -> Http:
        """The HTTP port: pages of all workers, and what a worker answers."""
        from starlette.routing import Route

        from statestream_server.edges.http.port import Http
        from statestream_server.workers.relay import Relay

        routes = list[Route]()
        if self._read.tls_clients is None or self._read.tokens is not None or self._read.http_tls:  # See app._http.
            folder = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="statestream-")))
            self._relay = Relay(self._workers, folder)
            routes += [Route("/v2", self._relay), Route("/v2/{path:path}", self._relay)]
            if has_console(self._read):
                from statestream_server.workers.console import Console

                routes += Console(self._workers, self._relay).routes()
        pages = WorkersPages(self._workers)

        def refused() -> None:
            pages.refused += 1

        return Http(self._read, pages, routes, refused)

    def _stop(self) -> None:
        """Asks every worker to leave, once; a second signal ends them."""
        if self._stopping:
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.kill()
        self._stopping = True
        for worker in self._workers:
            worker.reason = "leaving"
            if worker.channel is not None:
                self._begin(self._send_off(worker))
        self._look_whether_all_ended()

    async def _send_off(self, worker: _Worker) -> None:
        with suppress(Gone, errors.StatestreamError):
            await worker.ask("leave")

    def _start_others(self) -> None:
        for worker in self._workers:
            if worker.process is None and not worker.restarts:
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        if self._stopping or worker.process is not None:
            return
        settings, ours, theirs = self._settings, *socket.socketpair()
        if self._relay is not None:
            path = self._relay.path(worker.index)
            path.unlink(missing_ok=True)  # Of the process before.
            settings = dataclasses.replace(settings, http_unix=str(path))
        with theirs:
            worker.process = self._context.Process(
                target=_serve, args=(settings, self._log_level, theirs), name=f"worker-{worker.index}"
            )
            worker.process.start()
        worker.started, worker.reason, worker.heard = time.monotonic(), _STARTING, None
        worker.channel = Channel(partial(self._crew.answer, worker))
        self._begin(worker.channel.run(ours))
        self._begin(self._look_after(worker, worker.channel))
        asyncio.get_running_loop().add_reader(worker.process.sentinel, self._end, worker, worker.process)

    async def _look_after(self, worker: _Worker, channel: Channel) -> None:
        """Asks a worker how it is, as long as it is this process."""
        while worker.channel is channel:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    reason = await channel.ask("status")
                worker.heard = time.monotonic()
                if not self._stopping:
                    worker.reason = reason
            except (TimeoutError, errors.StatestreamError):
                pass  # It starts, or does not answer; how long that may be is the pages' affair.
            except Gone:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _end(self, worker: _Worker, ended: SpawnProcess) -> None:
        """Notes that a worker ended, and when it may start again."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(ended.sentinel)
        ended.join()
        status = ended.exitcode or 0
        if worker.channel is not None:
            worker.channel.close()
        self._crew.left(worker)
        worker.process = worker.channel = worker.heard = None
        if self._stopping:
            self._status = abs(status) or self._status
            self._look_whether_all_ended()
            return
        if time.monotonic() - worker.started > _STEADY_SECONDS:
            worker.pause = _FIRST_PAUSE
        pause, worker.pause = worker.pause, min(2 * worker.pause, _LONGEST_PAUSE)
        worker.restarts, worker.reason = worker.restarts + 1, f"ended with status {status}"
        loop.call_later(pause, self._start, worker)
        log.error("worker %d ended with status %d; it starts again in %.1f s", worker.index, status, pause)

    def _look_whether_all_ended(self) -> None:
        if self._stopping and all(worker.process is None for worker in self._workers):
            self._ended.set()

    async def _reload(self) -> None:
        """Takes over settings that changed, all or nothing, and the newest models, in every worker."""
        try:
            fresh, level = await asyncio.to_thread(self._reread)
            changed = changes(self._read, fresh)
        except StartError as error:
            log.error("the settings stay as they are: %s", error)
        else:
            # Workers that start again have them, too.
            self._read, self._log_level = fresh, level
            self._settings = dataclasses.replace(self._settings, **changed)
            logging.getLogger().setLevel(level.upper())
            for worker in self._workers:
                with suppress(Gone, errors.StatestreamError):
                    await worker.ask("settings", log_level=level.upper(), changes=changed)
            log.info("settings read anew in every worker: %s", ", ".join(changed) or "nothing changed")
        await self._crew.reload()
        log.info("models loaded anew where there are newer ones")

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextmanager
def _reserved(settings: Settings) -> Iterator[int]:
    """Holds the shared port, so that port 0 becomes one number for all and a taken port is told once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((settings.host, settings.port))
        yield int(holder.getsockname()[1])


def _serve(settings: Settings, log_level: str, connected: socket.socket) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # The first process hears it for all.
    try:
        process.run(settings, log_level, worker=connected)
    except StartError as error:
        log.error("%s", error)
        sys.exit(1)
