"""The table of operators that torch.export writes graphs by: read once a run, where torch reads it for each export."""

from __future__ import annotations

import functools
from typing import Any


def share() -> None:
    """Has all exports of this process share the table; each has a copy, to which it may add.

    To read it takes longer than a small model's whole export. It is torch's own, and no part of its interface: where
    it is not found, each export reads it.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return
    read = ONNXRegistry.from_torchlib
    if getattr(read, "shared", False):
        return
    once = functools.cache(read)

    def from_torchlib(*args: Any, **kwargs: Any) -> ONNXRegistry:
        found = once(*args, **kwargs)
        copy = ONNXRegistry()
        vars(copy).update(vars(found))
        copy.functions = {target: [*known] for target, known in found.functions.items()}
        return copy

    from_torchlib.shared = True  # type: ignore[attr-defined]
    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign]
