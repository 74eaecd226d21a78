"""The outbox: which frames leave now, and in which order."""

from __future__ import annotations

from collections import deque

import numpy as np

from statestream.core.blocks import Block, Draft
from statestream.core.controls import Control, Controls
from statestream.core.departures import Departures
from statestream.core.log import Log
from statestream.core.opening import Opening
from statestream.core.opens import Opens
from statestream.core.predictions import Predictions
from statestream.core.results import Results, acknowledge
from statestream.core.table import State, Table
from statestream.core.tickets import Lane
from statestream.v1.inference_pb2 import StreamRequest

FLUSH_EVERY = 1.0
"""Seconds between requests to make room by a flush."""


class Outbox:
    """Frames on their way to the server: opens, chunks, flushes and closes, acknowledgements, then a predict frame."""

    def __init__(
        self,
        table: Table,
        log: Log,
        departures: Departures,
        opens: Opens,
        controls: Controls,
        results: Results,
        predictions: Predictions,
    ) -> None:
        self.frames: deque[Block | StreamRequest] = deque()
        """Those that have their number; a block is written as late as possible."""
        self.flush_due = float("-inf")
        """When the next request to make room by a flush may leave."""
        self._last = 0
        self._drafts: dict[Lane, Draft] = {}
        self._table = table
        self._log = log
        self._departures = departures
        self._opens = opens
        self._controls = controls
        self._results = results
        self._predictions = predictions

    def take(self) -> StreamRequest | None:
        """The next frame, None where it is not needed any more; it has to be written before the next call."""
        item = self.frames.popleft()
        if not isinstance(item, Block):
            return item
        # One without a number was settled before it was written: the server let its session go meanwhile. Chunks are
        # written as late as possible, so that the acknowledgements are the newest.
        return item.request(self._table, self._drafts) if item.frame else None

    def fill(self, now: float) -> bool:
        """Takes what may leave now; whether there is something."""
        opens, controls, outbox = self._opens, self._controls, self.frames
        if controls.failed:  # Before anything about another session that has one of their handles.
            self._unbind()
        if opens.waiting:
            for opening in opens.ready(now):
                outbox.append(self._open_frame(opening))
        for block in self._departures.fill(now):
            self._log.sent(self._number(), block)
            outbox.append(block)
        if self._departures.starved and now >= self.flush_due:
            self.flush_due = now + FLUSH_EVERY
            controls.save()
            self._departures.look_again()
        if controls.waiting:
            for batch in controls.ready(now):
                outbox.append(self._control_frame(batch))
        if controls.failed:  # What failed just now: its handle may be taken again from the next time on.
            self._unbind()
        if self._results.acks_due:
            self._acknowledge()
        if self._predictions.waiting and (request := self._predictions.next(now, self._number)) is not None:
            outbox.append(request)
        return bool(outbox)

    def _unbind(self) -> None:
        self.frames.append(self._controls.unbind(self._number()))

    def _open_frame(self, opening: Opening) -> StreamRequest:
        frame = self._number()
        return StreamRequest(frame=frame, open=self._opens.sent(frame, opening))

    def _control_frame(self, batch: list[Control]) -> StreamRequest:
        if batch[0].lets_go:
            sent = np.concatenate([control.asked for control in batch])
            handles = np.unique(sent[self._table.acked[sent] != self._table.acknowledgeable(sent)])
            if handles.size:
                self.frames.extend(acknowledge(self._table, handles, self._number))
        return self._controls.encode(batch, self._number())

    def _acknowledge(self) -> None:
        table = self._table
        self._results.acks_due = False
        state = table.state[: table.size]
        least, self._results.acks_all = 1 if self._results.acks_all else self._results.ack_after, False
        handles = np.flatnonzero((table.unacked[: table.size] >= least) & (state == State.OPEN))
        if handles.size:
            self.frames.extend(acknowledge(table, handles, self._number))

    def _number(self) -> int:
        self._last += 1
        return self._last
