"""Contexts: what an encoder said, kept once for all rows that start from it, and counted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from statestream.contract.signature import Signature
from statestream_server.arrays import Freelist, Ints, grown
from statestream_server.models.rows import SCRATCH_ROW

if TYPE_CHECKING:
    import onnx

_START = 0
"""The slot of the start values."""


class Contexts:
    """Which rows have which slot of the columns that rows share.

    No slot is ever written while more than one row has it: who writes a row gets a slot of its own. There are as many
    slots as rows, so that none is ever missing; what nobody wrote takes no memory.

    Attributes:
        columns: The places of these columns among all.
    """

    def __init__(self, columns: frozenset[int]) -> None:
        """No rows."""
        self.columns = columns
        self._slots: Ints = np.empty(0, np.int64)
        self._rows: Ints = np.empty(0, np.int64)
        self._free = Freelist(_START + 1)
        self._lock = threading.Lock()  # A step in another thread may share, too.

    @property
    def used(self) -> int:
        """Slots in use, but for that of the start values."""
        return max(0, self._free.capacity - 1 - len(self._free))

    def grow(self, capacity: int) -> None:
        """Makes room for so many rows; they have the start values."""
        with self._lock:
            self._slots = grown(self._slots, capacity, _START)
            self._rows = grown(self._rows, capacity, 0)
            self._free.grow(capacity)

    def of(self, rows: Ints) -> Ints:
        """[n] the slots of rows."""
        return self._slots[rows]

    def fresh(self, rows: Ints) -> Ints:
        """[n] slots of their own for rows [n], which are distinct and let go what they had."""
        with self._lock:
            self._drop(rows)
            slots = self._free.take(len(rows))
            self._slots[rows], self._rows[slots] = slots, 1
            return slots

    def share(self, source: Ints, target: Ints) -> None:
        """Gives rows target [n] the slots of rows source [n]; targets are distinct but for the scratch row."""
        kept = target != SCRATCH_ROW
        source, target = source[kept], target[kept]
        with self._lock:
            slots = self._slots[source]
            np.add.at(self._rows, slots, 1)
            self._drop(target)
            self._slots[target] = slots

    def drop(self, rows: Ints) -> None:
        """Has rows [n] let go of what they have; then they have the start values."""
        with self._lock:
            self._drop(rows)

    def _drop(self, rows: Ints) -> None:
        slots = self._slots[rows]
        np.subtract.at(self._rows, slots, 1)
        self._slots[rows] = _START
        named = np.unique(slots[slots != _START])
        self._free.give(named[self._rows[named] == 0])


def context_of(model: onnx.ModelProto, signature: Signature) -> frozenset[int]:
    """The places of the states that start from an encoder's output and that a graph hands through as they are."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = set[int]()
    for place, state in enumerate(signature.states):
        name = state.output if state.from_encoder else ""
        while name in makers and makers[name].op_type == "Identity":
            name = makers[name].input[0]
        if name == state.input:
            found.add(place)
    return frozenset(found)
