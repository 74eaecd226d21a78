"""A wrapped graph as ONNX Runtime takes it, and what it calls its inputs and outputs; see fusion."""

from __future__ import annotations

from typing import NamedTuple


class SlabNames(NamedTuple):
    """What the wrapped graph calls one column of the slab.

    Attributes:
        before: Input: the column as items, shape [capacity × parts, *item].
        after: Output: the same after the step; bind it to the memory of `before`. "" where the step only reads it.
        parts: How many items are one row.
        item: The shape of one.
    """

    before: str
    after: str
    parts: int
    item: tuple[int, ...]


class Names(NamedTuple):
    """What the wrapped graph calls its inputs and outputs.

    Attributes:
        source: Input: rows to read, int64 [n].
        target: Input: rows to write, int64 [n].
        inputs: Inputs: for each of the signature's, [n, T, *step shape].
        outputs: Outputs: for each of the signature's, [n, T, *step shape].
        slabs: Inputs and outputs: the columns.
        bad: Output: which rows failed their check, bool [1, n]; "" where no state is checked.
        slots: Input: where the rows to read have what they share, int64 [n]; "" where they share nothing.
    """

    source: str
    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slabs: tuple[SlabNames, ...]
    bad: str
    slots: str = ""


class Wrapped(NamedTuple):
    """A wrapped graph.

    Attributes:
        graph: A serialised ModelProto, weights included.
        names: What it calls its inputs and outputs.
        touching: The names of the nodes that touch the columns.
        context: The places of the states that rows share.
    """

    graph: bytes
    names: Names
    touching: frozenset[str]
    context: frozenset[int]
