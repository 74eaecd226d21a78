"""Answers that came in part: what is there of each, until the last part is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from statestream.contract.errors import BadFrame
from statestream.contract.partial import Partial
from statestream.contract.tensors import HANDLE, POSITION
from statestream.core.tickets import Outputs
from statestream.v1.inference_pb2 import PartFrame, PredictedFrame, ResultFrame


class Whole(NamedTuple):
    """An answer of which all parts came: its first part, without data, its last part, and its outputs."""

    first: PartFrame
    last: PartFrame
    outputs: Outputs

    @property
    def result(self) -> ResultFrame:
        """The result frame that it would have been, but for the outputs."""
        return ResultFrame(
            handles=np.array([self.first.handle], HANDLE).tobytes(),
            positions=np.array([self.first.position], POSITION).tobytes(),
            steps=self.first.steps,
            durable_positions=np.array([self.last.durable_position], POSITION).tobytes(),
        )

    @property
    def predicted(self) -> PredictedFrame:
        """The same of a prediction."""
        return PredictedFrame(version=self.first.version, calls=np.array([self.first.handle], HANDLE).tobytes())


class Parts:
    """Answers whose last part is still to come, by frame, session (or call) and position."""

    def __init__(self) -> None:
        self._partial: dict[tuple[int, int, int], tuple[PartFrame, Partial]] = {}

    def __len__(self) -> int:
        return len(self._partial)

    def clear(self) -> None:
        """The stream is gone: on the next one answers begin anew."""
        self._partial.clear()

    def take(self, frame: int, part: PartFrame) -> Whole | None:
        """Takes a part; the answer, where it was the last one.

        Raises:
            BadFrame: It is not the part that had to come, or does not fit the first one.
        """
        key = (frame, part.handle, part.position)
        found = self._partial.pop(key, None)
        if part.part == 0:
            first = PartFrame(
                handle=part.handle, position=part.position, steps=part.steps, version=part.version, outputs=part.outputs
            )
            found = first, Partial(first.outputs, "output")
        if found is None:
            raise BadFrame(f"part {part.part} of {part.parts} came, from byte {part.offset} on; expected part 0")
        first, partial = found
        if partial.put(part):
            return Whole(first, part, partial.arrays)
        self._partial[key] = found
        return None
