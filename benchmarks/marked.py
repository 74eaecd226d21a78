"""`python -m benchmarks.marked FILE serve …`: the command `statestream`, which notes when a lone step passes its rooms.

A few functions are wrapped: each notes the clock when it begins and when it ends, and FILE has it all when the server
has ended. The clock is the machine's, so a client's times can be laid beside them. A mark costs about half a
microsecond.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

READ, RUN, RUNTIME, WRITE = ("read", "run", "runtime", "write")
_KEPT: Final = 1_000_000
"""Marks that are kept at most, the last ones."""


def marked(function: Callable[..., Any], name: str, marks: list[tuple[int, str]]) -> Callable[..., Any]:
    """A function that notes when it begins (+) and ends (-)."""
    clock, begins, ends = time.perf_counter_ns, f"{name}+", f"{name}-"

    def passed(*args: Any, **more: Any) -> Any:
        marks.append((clock(), begins))
        try:
            return function(*args, **more)
        finally:
            marks.append((clock(), ends))

    return passed


def main() -> None:
    from statestream.cli import main as statestream
    from statestream_server.edges.h2.connection import Connection
    from statestream_server.engine.alone import Alone
    from statestream_server.models.graphs.runtime import Binding

    marks = list[tuple[int, str]]()
    for owner, function, name in (
        (Connection, "data_received", READ),
        (Alone, "step", RUN),
        (Binding, "run", RUNTIME),
        (Connection, "flush", WRITE),
    ):
        setattr(owner, function, marked(getattr(owner, function), name, marks))
    file = Path(sys.argv[1])
    sys.argv = ["statestream", *sys.argv[2:]]
    try:
        statestream()
    finally:
        file.write_text(json.dumps(marks[-_KEPT:]))


if __name__ == "__main__":
    main()
