"""What signals do to a server process: the first one stops it, a second one ends it at once, SIGHUP reloads."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from statestream_server.server import Server
from statestream_server.settings import Settings, StartError, changes, reloaded

log = logging.getLogger(__name__)

_SAME_SECONDS: Final = 0.2
"""What comes so soon behind the first is that one again: where a second kind of signal comes in the moment in which
Python handles one, uvloop tells of it twice. Nobody asks twice so fast."""


class Stop(asyncio.Event):
    """Set by the first signal."""

    _since = 0.0

    def hear(self) -> None:
        """One signal came; behind the first it ends the process, at once and with status 130."""
        now = time.monotonic()
        if not self.is_set():
            self._since = now
            self.set()
        elif now - self._since > _SAME_SECONDS:
            os._exit(130)  # Whoever asks twice waits for nothing, not even for the loop to wind up.


class Reloading:
    """What SIGHUP does to a server of one process."""

    def __init__(self, server: Server, settings: Settings, reread: Callable[[], tuple[Settings, str]]) -> None:
        """Settings that are read anew may differ from `settings` only where they are reloadable."""
        self._server = server
        self._read = settings
        self._reread = reread
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins a reload, unless one is on its way."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self.reload(), name="reload")

    async def reload(self) -> None:
        """Takes over what changed, all or nothing; then loads the newest version of every model."""
        try:
            fresh, level = await asyncio.to_thread(self._reread)
            changed = changes(self._read, fresh)
        except StartError as error:
            log.error("the settings stay as they are: %s", error)
        else:
            logging.getLogger().setLevel(level.upper())
            self._server.settings, self._read = reloaded(self._server.settings, changed), fresh
            log.info("settings read anew: %s", ", ".join(changed) or "nothing changed")
        await self._server.selection.reload()
        await self._server.aliasing.reread()
        log.info("models loaded anew where there are newer ones")
