"""Predict frames: calls of models without memory, many in a frame; who hears how they ended, and what is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import numpy as np

from statestream.contract import errors
from statestream.contract.partial import PART, Cut, Partial
from statestream.v1 import inference_pb2 as pb
from statestream_server.arrays import Array
from statestream_server.drivers.predict import Asked
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.answers import OVERHEAD as MESSAGE
from statestream_server.edges.grpc.answers import WHOLE, Parts
from statestream_server.edges.grpc.outbox import ERROR_BYTES, MOST_ERRORS, Outbox
from statestream_server.engine.calls import along
from statestream_server.server import Server
from statestream_server.sessions.admission.accounts import OVERHEAD, Account, Window

_RETRY_SECONDS = 0.1


class PredictFrames:
    """The predict frames of one stream."""

    def __init__(self, server: Server, outbox: Outbox, account: Account) -> None:
        """Calls that are answered through `outbox`; `account` has what is under way."""
        self.under_way = set[Receiver]()
        """Frames of which a call has no answer yet."""
        self._server = server
        self._predictor = server.predictor
        self._most_bytes = server.settings.limits.max_message_bytes
        self._outbox = outbox
        self._account = account
        self._windows: dict[tuple[str, int, str], Window] = {}
        self._incoming: tuple[int, pb.PredictFrame, Partial] | None = None
        self._settled: asyncio.Future[None] | None = None

    def take(self, frame: int, request: pb.PredictFrame) -> None:
        """Takes a frame, or begins to: of one in parts the inputs are still to come.

        Raises:
            BadFrame, BadTensor, ModelNotFound, Unsupported: It cannot be read, or is about no such model.
        """
        if not request.parts:
            asked = self._asked(request)
            names = [spec.name for spec in asked.model.signature.inputs]
            self._run(frame, request, asked, wire.named(request.inputs, names, "inputs"))
            return
        self._incoming = None
        self._asked(request)
        incoming = Partial(request.inputs, "input")
        if request.rows or incoming.size > self._most_bytes or request.parts > incoming.size:
            raise errors.BadFrame(
                f"a frame in {request.parts} parts has {incoming.size} bytes of inputs, {len(request.rows) // 4} rows;"
                f" expected one call, without rows, of at most {self._most_bytes} bytes, and no part without any",
                metadata={"field": "parts"},
            )
        self._incoming = frame, request, incoming

    def part(self, frame: int, part: pb.PartFrame) -> None:
        """Takes a part of the frame in parts that came last.

        Raises:
            BadFrame: It is none, or not the one that had to come: then the frame is over.
            StatestreamError: It was the last part, and the frame is refused.
        """
        incoming, self._incoming = self._incoming, None
        if incoming is None or incoming[0] != frame:
            self._incoming = incoming
            raise errors.BadFrame(
                f"a part of frame {frame} came; expected one of the last predict frame with `parts`, which is not over",
                metadata={"field": "frame"},
            )
        _, request, arrays = incoming
        if part.parts != request.parts:
            raise errors.BadFrame(
                f"a part says that there are {part.parts}; its frame said {request.parts}", metadata={"field": "parts"}
            )
        if not arrays.put(part):
            self._incoming = incoming
            return
        asked = self._asked(request)
        names = [spec.name for spec in asked.model.signature.inputs]
        if arrays.arrays.keys() != set(names) or len(request.inputs) != len(names):
            wire.named(request.inputs, names, "inputs")
        self._run(frame, request, asked, [arrays.arrays[name] for name in names])

    async def settled(self) -> None:
        """Returns when every call that was taken is answered; calls that are still to come are not waited for."""
        while self.under_way:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled

    def cancel(self) -> None:
        """Nobody hears the answers any more: what waits is not run."""
        for receiver in self.under_way:
            receiver.leave()
        self.under_way.clear()
        self._incoming = None

    def ended(self, receiver: Receiver) -> None:
        """A frame has all its answers."""
        self.under_way.discard(receiver)
        if not self.under_way and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _asked(self, request: pb.PredictFrame) -> Asked:
        return self._predictor.asked(
            self._predictor.model(request.model, request.version, request.alias), request.outputs
        )

    def _run(self, frame: int, request: pb.PredictFrame, asked: Asked, inputs: list[Array]) -> None:
        rows = None
        if request.rows:
            rows = wire.column(request.rows, "<u4", len(request.rows) // 4, "rows").tolist()
        rows = self._predictor.check(asked, inputs, rows)
        came = sum([array.nbytes for array in inputs])
        self._server.turns.note(len(rows), nbytes=came)
        asked_for = request.model, request.version, request.alias
        window = self._windows.get(asked_for)
        if window is None:
            window = self._windows[asked_for] = self._account.window()
        costs = _costs(asked, rows, came)
        receiver = Receiver(
            self, self._predictor.check_answer, self._outbox, self._account, window, frame, asked, costs
        )
        self.under_way.add(receiver)
        for first, last in receiver.begin(rows):
            some = inputs
            if last - first < len(rows):
                start, count = sum(rows[:first]), sum(rows[first:last])
                some = [array[along(axis, start, count)] for array, axis in zip(inputs, asked.axes, strict=True)]
            self._predictor.submit(asked, some, rows[first:last], receiver, first)


class Receiver:
    """Takes the answers to the calls of one frame; they are under way until then."""

    def __init__(
        self,
        frames: PredictFrames,
        check: Callable[[Asked, int], None],
        outbox: Outbox,
        account: Account,
        window: Window,
        frame: int,
        asked: Asked,
        costs: Sequence[int],
    ) -> None:
        """Calls of which each has so many bytes under way; `check` refuses answers that are too large."""
        self.wanted = True
        """Whether anybody hears the answers."""
        self._frames = frames
        self._check = check
        self._outbox = outbox
        self._account = account
        self._window = window
        self._frame = frame
        self._asked = asked
        self._costs = costs
        self._left = len(costs)
        self._held = 0

    def begin(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Counts what is under way from now on, and refuses what cannot be: the others, as ranges that follow on."""
        window, asked = self._window, self._asked
        room = window.most - window.held - OVERHEAD
        within = sum(1 for total in accumulate(self._costs) if total <= room)
        if not within and not window.held:
            within = 1
        self._held = OVERHEAD + sum(self._costs)
        self._account.take(self._held, window)
        if within < len(rows):
            self.refused(within, len(rows) - within, _beyond(window, asked.model.name))
        ranges, first = list[tuple[int, int]](), 0
        if within and self._too_large(max(rows[:within])):
            for place in range(within):
                if error := self._too_large(rows[place]):
                    if first < place:
                        ranges.append((first, place))
                    self.refused(place, 1, error)
                    first = place + 1
        if first < within:
            ranges.append((first, within))
        return ranges

    def ran(self, first: int, rows: Sequence[int], outputs: list[Array]) -> None:
        """Sends outputs, in as many messages as they take; the last gives back what the calls have had."""
        chosen, cost = self._asked.chosen(outputs), self._cost(first, len(rows))
        if not self.wanted:
            return
        size = sum([array.nbytes for array in chosen])
        if size <= WHOLE:
            self._outbox.put_later(partial(self._message, first, len(rows), chosen), size + MESSAGE, self._window, cost)
            return
        messages = [*self._cut(first, rows, chosen, size)]
        for make, nbytes in messages[:-1]:
            self._outbox.put_later(make, nbytes, self._window)
        self._outbox.put_later(*messages[-1], self._window, cost)

    def refused(self, first: int, count: int, error: errors.StatestreamError) -> None:
        """Sends why calls have no answer."""
        cost = self._cost(first, count)
        if self.wanted:
            self._account.give(cost, self._window)
            for low in range(first, first + count, MOST_ERRORS):
                some = min(MOST_ERRORS, first + count - low)
                self._outbox.put_later(partial(self._refusals, low, some, error), ERROR_BYTES * some)

    def leave(self) -> None:
        """Nobody hears the answers any more."""
        self.wanted = False
        self._account.give(self._held, self._window)

    def _message(self, first: int, count: int, outputs: Sequence[Array]) -> pb.StreamResponse:
        response = pb.StreamResponse(frame=self._frame)
        predicted, asked = response.predicted, self._asked
        predicted.version = asked.model.version
        if count < len(self._costs):
            predicted.calls = np.arange(first, first + count, dtype="<u4").tobytes()
        wire.write(predicted.outputs, [spec.name for spec in asked.specs], outputs)
        return response

    def _cut(
        self, first: int, rows: Sequence[int], outputs: Sequence[Array], size: int
    ) -> list[tuple[Callable[[], pb.StreamResponse], int]]:
        """The messages of calls whose outputs are too large for one, still to be made, and about their bytes."""
        if len(rows) == 1:
            try:
                self._check(self._asked, size)
            except errors.StatestreamError as error:
                return [(partial(self._refusals, first, 1, error), MESSAGE)]
            names = [spec.name for spec in self._asked.specs]
            said = pb.PartFrame(handle=first, version=self._asked.model.version)
            return [*Parts(self._frame, said, pb.PartFrame(), Cut(names, outputs)).messages()]
        found, axes = [], [self._asked.output_axes[place] for place in self._asked.wanted]
        each, low, start = size / max(1, sum(rows)), 0, 0
        while low < len(rows):
            high, count = low + 1, rows[low]
            while high < len(rows) and (count + rows[high]) * each <= PART:
                count += rows[high]
                high += 1
            some = [array[along(axis, start, count)] for array, axis in zip(outputs, axes, strict=True)]
            nbytes = sum([array.nbytes for array in some])
            if nbytes > WHOLE:
                found += self._cut(first + low, rows[low:high], some, nbytes)
            else:
                found.append((partial(self._message, first + low, high - low, some), nbytes + MESSAGE))
            low, start = high, start + count
        return found

    def _refusals(self, first: int, count: int, error: errors.StatestreamError) -> pb.StreamResponse:
        handles = np.arange(first, first + count)
        return pb.StreamResponse(frame=self._frame, predicted=pb.PredictedFrame(errors=wire.row_errors(handles, error)))

    def _too_large(self, rows: int) -> errors.StatestreamError | None:
        try:
            self._check(self._asked, self._asked.known_bytes(rows))
        except errors.StatestreamError as error:
            return error
        return None

    def _cost(self, first: int, count: int) -> int:
        """What some of the calls have had of the window, which end now."""
        self._left -= count
        cost = sum(self._costs[first : first + count])
        if not self._left:
            cost += OVERHEAD
            self._frames.ended(self)
        self._held -= cost
        return cost


def _costs(asked: Asked, rows: Sequence[int], came: int) -> list[int]:
    """The bytes that each of some calls holds until it is answered: its inputs, and the outputs it comes to."""
    if len(rows) == 1:
        return [came + asked.known_bytes(rows[0])]
    inputs, outputs = came // max(1, sum(rows)), asked.known_bytes(1) - asked.known_bytes(0)
    return [count * (inputs + outputs) for count in rows]


def _beyond(window: Window, model: str) -> errors.Overloaded:
    return errors.Overloaded(
        f"the stream has predictions of {window.held:,} bytes of model {model!r} under way; the limit is"
        f" {window.most:,} (max_window_bytes). Send on when answers have come",
        retry_after=_RETRY_SECONDS,
    )
