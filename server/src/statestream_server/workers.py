"""Several server processes on one port: started, watched, started again, stopped together.

Each worker has its own engine and rows; the kernel spreads connections over them, and the store lets any of
them take a session over. Metrics are one port each: worker k serves them on the HTTP port plus k.

Workers are asked to leave by a pipe that closes: also when this process is killed, so that none is left behind, and
not by a second signal where a terminal or a service manager has sent one to every process.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from statestream_server import process
from statestream_server.settings import Settings, StartError, check_models, check_reach

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a worker that ended is started again; doubled each time."""
_STEADY_SECONDS = 60.0
"""A worker that ran as long starts again after the first pause."""


def run(settings: Settings, count: int, log_level: str) -> int:
    """Runs workers until SIGTERM or SIGINT; returns the exit status.

    Args:
        settings: Of every worker; port and store are shared.
        count: How many.
        log_level: How much they tell.

    Raises:
        StartError: Others than this machine would reach them, and nobody said that they may; or there are no models.
    """
    process.log_to_stderr(log_level)
    check_reach(settings)
    check_models(settings)
    # Spawned, not forked: no gRPC object may exist when a process forks.
    context = multiprocessing.get_context("spawn")
    with _reserved(settings) as port:
        pool = _Pool(context, dataclasses.replace(settings, port=port, reuse_port=True), count, log_level)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pool.stop)
        return pool.watch()


class _Pool:
    """The workers, and when each may start again."""

    def __init__(
        self, context: multiprocessing.context.SpawnContext, settings: Settings, count: int, log_level: str
    ) -> None:
        self._context = context
        self._settings = settings
        self._log_level = log_level
        self._told, self._leave = context.Pipe(duplex=False)
        self._workers: dict[int, SpawnProcess] = {}
        self._started: dict[int, float] = {}
        self._pauses = dict.fromkeys(range(count), _FIRST_PAUSE)
        self._due = dict.fromkeys(range(count), 0.0)

    def stop(self, _number: int, _frame: object) -> None:
        """Asks every worker to leave, once; a second signal ends them."""
        if self._stopping:
            for worker in self._workers.values():
                worker.kill()
        self._leave.close()

    def watch(self) -> int:
        """Keeps the workers running until they are asked to leave; 0 where all left in order."""
        status = 0
        while self._workers or not self._stopping:
            if not self._stopping:
                self._start_due()
            news: list[int | Connection] = [worker.sentinel for worker in self._workers.values()]
            if self._stopping:
                wait(news)
            else:
                wait([self._told, *news], self._pause())
            for index, worker in list(self._workers.items()):
                if not worker.is_alive():
                    status = self._ended(index, worker) or status
        return status

    @property
    def _stopping(self) -> bool:
        return self._leave.closed

    def _pause(self) -> float | None:
        """Seconds until the next worker starts; None where all run."""
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def _start_due(self) -> None:
        for index, due in list(self._due.items()):
            if due <= time.monotonic():
                del self._due[index]
                http = self._settings.http_port
                settings = dataclasses.replace(self._settings, http_port=http + index if http else http)
                worker = self._context.Process(
                    target=_serve, args=(settings, self._log_level, self._told), name=f"worker-{index}"
                )
                worker.start()
                self._workers[index], self._started[index] = worker, time.monotonic()

    def _ended(self, index: int, worker: SpawnProcess) -> int:
        """Notes that a worker ended, and when it may start again."""
        worker.join()
        del self._workers[index]
        status = worker.exitcode or 0
        if self._stopping:
            return abs(status)
        if time.monotonic() - self._started[index] > _STEADY_SECONDS:
            self._pauses[index] = _FIRST_PAUSE
        pause = self._pauses[index]
        self._pauses[index] = min(2 * pause, _LONGEST_PAUSE)
        self._due[index] = time.monotonic() + pause
        log.error("worker %d ended with status %d; it starts again in %.1f s", index, status, pause)
        return 0


@contextmanager
def _reserved(settings: Settings) -> Iterator[int]:
    """Holds the shared port, so that port 0 becomes one number for all and a taken port is told once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((settings.host, settings.port))
        yield int(holder.getsockname()[1])


def _serve(settings: Settings, log_level: str, told: Connection) -> None:
    try:
        process.run(settings, log_level, told.fileno())
    except StartError as error:
        log.error("%s", error)
        sys.exit(1)
