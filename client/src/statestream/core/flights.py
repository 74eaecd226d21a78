"""Flights: what calls of models without memory are, which of them may share a frame, and the frame that they share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from statestream.contract.partial import PART
from statestream.contract.tensors import handles_column
from statestream.core.tickets import Ticket
from statestream.v1.inference_pb2 import PartFrame, StreamRequest


@dataclass(frozen=True, eq=False, slots=True)
class Kind:
    """Calls that may share a frame: one model and version as asked for, the same outputs, the same shape of a row.

    Attributes:
        model: The model's name.
        version: The version; 0 for the one that serves by default, or that the alias names.
        names: The inputs.
        dtypes: Their dtypes.
        shapes: The shape of a row of each, where calls share frames; else of the whole call.
        outputs: The names of the outputs that are wanted; none for all.
        shares: Whether calls share frames: all batch axes are the first.
        row_bytes: Bytes of the inputs of a row; of a call where calls do not share frames.
        answer_bytes: Bytes of the outputs of it, as far as the signature says.
        alias: What was asked for in place of the version, "" for nothing.
    """

    model: str
    version: int
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[str, ...]
    shares: bool
    row_bytes: int
    answer_bytes: int
    alias: str = ""


class PredictTicket(Ticket):
    """One call.

    Attributes:
        inputs: The bytes of every input, in the kind's order.
        rows: Its rows; 1 where calls do not share frames.
        faults: How many streams ended by a fault while it was under way.
        tries: How often it was refused for a while.
        until: When such refusals are told; 0 before the first.
    """

    __slots__ = ("faults", "inputs", "kind", "rows", "tries", "until")

    def __init__(self, kind: Kind, inputs: tuple[bytes, ...], rows: int) -> None:
        super().__init__()
        self.kind = kind
        self.inputs = inputs
        self.rows = rows
        self.faults = self.tries = 0
        self.until = 0.0


@dataclass(eq=False, slots=True)
class Line:
    """The calls of a kind.

    Attributes:
        waiting: Those that were not sent, in the order in which they leave.
        frames: Frames in flight.
        calls: Calls in them.
    """

    waiting: OrderedDict[PredictTicket, None] = field(default_factory=OrderedDict)
    frames: int = 0
    calls: int = 0


@dataclass(eq=False, slots=True)
class Flight:
    """Calls in one frame.

    Attributes:
        tickets: The calls; None where one is answered.
        rows: The rows of each.
        left: How many are not answered.
        weight: What they have of the window.
        frame: The number of the frame.
        part: The part of the inputs that leaves next, of a frame in parts; -1 where there is none.
    """

    kind: Kind
    tickets: list[PredictTicket | None]
    rows: list[int]
    left: int
    weight: int
    frame: int = 0
    part: int = -1

    def request(self) -> StreamRequest:
        """The frame; of one in parts without the data of its inputs."""
        kind, request = self.kind, StreamRequest(frame=self.frame)
        tickets = [ticket for ticket in self.tickets if ticket is not None]
        frame = request.predict
        frame.model, frame.version = kind.model, kind.version
        if kind.alias:
            frame.alias = kind.alias
        if kind.outputs:
            frame.outputs.extend(kind.outputs)
        if len(tickets) > 1:
            frame.rows = handles_column(np.array(self.rows))
        leading = (sum(self.rows),) if kind.shares else ()
        for place, (name, dtype, shape) in enumerate(zip(kind.names, kind.dtypes, kind.shapes, strict=True)):
            tensor = frame.inputs.add()
            tensor.name, tensor.dtype = name, dtype
            tensor.shape.extend((*leading, *shape))
            if self.part < 0:
                data = [ticket.inputs[place] for ticket in tickets]
                tensor.data = data[0] if len(data) == 1 else b"".join(data)
        if self.part == 0:
            frame.parts = -(-sum(map(len, tickets[0].inputs)) // PART)
        return request

    def next_part(self) -> StreamRequest:
        """The next part of a call's inputs; behind the last, `part` is -1 again."""
        ticket = self.tickets[0]
        assert ticket is not None
        low, begin, pieces = self.part * PART, 0, list[memoryview]()
        for data in ticket.inputs:
            end = begin + len(data)
            if begin < low + PART and low < end:
                pieces.append(memoryview(data)[max(low - begin, 0) : low + PART - begin])
            begin = end
        part = PartFrame(part=self.part, parts=-(-begin // PART), offset=low, size=begin, data=b"".join(pieces))
        self.part = self.part + 1 if self.part + 1 < part.parts else -1
        return StreamRequest(frame=self.frame, part=part)
