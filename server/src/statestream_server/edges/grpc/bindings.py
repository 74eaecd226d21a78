"""The sessions of one stream: bound to its handles where they are opened, brought back where they sleep."""

from __future__ import annotations

import numpy as np

from statestream.contract import errors
from statestream_server.arrays import Array
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.handles import Handles
from statestream_server.edges.grpc.outbox import Outbox
from statestream_server.server import Server
from statestream_server.sessions.ownership.openings import Opened


class Bindings:
    """What a stream has sessions by.

    Attributes:
        number: The stream, as tables know their rows' owner.
        handles: The rows that its handles stand for.
    """

    def __init__(self, server: Server, number: int, outbox: Outbox) -> None:
        """A stream without sessions; what becomes of them is told through `outbox`."""
        self.number = number
        self.handles = Handles()
        self._server = server
        self._outbox = outbox

    def lost(self, handle: int, error: errors.StatestreamError) -> None:
        """A session left the stream, and its caller hears why."""
        self.handles.free(np.asarray([handle]))
        self._outbox.notice(wire.row_error(handle, 0, error))

    def bind(self, handles: Array, part: Opened) -> None:
        """Binds handles; what they stood for until now is let go without a word."""
        for table, rows, _ in self.handles.resolve(handles):
            self._server.sessions.detach(table, rows[(table is not part.table) | ~np.isin(rows, part.rows)])
        self.handles.bind(handles, part.table, part.rows, part.bindings)

    async def wake(self, handles: Array) -> None:
        """Brings back the sessions among `handles` that hibernate."""
        asleep = self.handles.asleep
        if not asleep:
            return
        models = {asleep[handle].key.model for handle in handles.tolist() if handle in asleep}
        for model in models:
            sleeping = [h for h in handles.tolist() if h in asleep and asleep[h].key.model == model]
            opened, refused = await self._server.activation.wake(
                [asleep[handle] for handle in sleeping],
                self.number,
                np.asarray(sleeping, np.uint32),
                keep=[(group.table, group.rows) for group in self.handles.resolve(handles)],
            )
            for part in opened:
                self.bind(np.asarray(sleeping)[part.places], part)
            for place, error in refused.items():
                self.lost(sleeping[place], error)
