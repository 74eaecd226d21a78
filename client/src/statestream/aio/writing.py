"""The writer of an asyncio client's stream: frames as the core has them, by one task, or begun by a lone caller."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import grpc

from statestream.aio.begun import Begun
from statestream.aio.wakeup import Wakeup
from statestream.connection import Connection
from statestream.core import StreamCore

_VAIN: Final = 16
"""Frames in a row that had one caller's step each; then a step that comes while nothing is written leaves at once."""


class Writer:
    """Writes frames; steps gather while a write is awaited. Where none would, their caller begins the write itself."""

    def __init__(self, core: StreamCore, state: Connection, wakeup: Wakeup) -> None:
        self._core = core
        self._state = state
        self._wakeup = wakeup
        self._idle: Any = None
        """The call while its writer waits for something to write."""
        self._begun: Begun | None = None
        """What a caller began to write, until the task has seen to it."""
        self._asked = self._vain = 0
        """Callers' steps since the last frame; frames in a row that had one."""

    def stepped(self) -> None:
        """A caller's step was submitted."""
        self._asked += 1
        if self._begun is not None:
            self._vain = 0  # It would have had company.
        elif self._idle is not None and self._vain >= _VAIN:
            self._begun = Begun(self._next(self._idle))
        self._wakeup.set()

    async def write(self, call: Any) -> None:
        """The task: writes until the stream is to be renewed, or is over."""
        core, wakeup = self._core, self._wakeup
        try:
            while self._begun is not None or not self._state.renewing:
                if self._begun is not None:
                    await self._begun
                    self._begun = None
                    continue
                if await self._next(call):
                    continue
                wakeup.clear()
                self._idle = call
                await wakeup.rung(core.due())
                self._idle = None
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # The call is over; its reader sees why.
        except Exception:
            call.cancel()  # Else its reader would wait for ever; it finds the fault here.
            raise
        finally:
            if self._begun is not None:
                self._begun.drop()  # The task was cancelled before it came to it.
            self._idle = self._begun = None

    async def _next(self, call: Any) -> bool:
        """Writes the next frame; whether there was one."""
        request = self._core.next_request(time.monotonic())
        if request is None:
            return False
        self._vain = self._vain + 1 if self._asked == 1 else 0
        self._asked = 0
        if self._state.tracing is not None:
            self._state.tracing.wrote(request)
        await call.write(request)
        return True
