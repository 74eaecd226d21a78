"""A step that comes alone: one row, one step, while nothing else waits. It runs at once, without a queue.

A queue costs a row that is alone more than the model does. What runs here is what a batch of this row would run, and
counted as that. Only what is as usual runs here: where the model refuses the step, or its check does, nothing of it was
applied, and a batch, to which it is left, finds out what to say of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from statestream_server.arrays import Array, Ints, some
from statestream_server.engine.engine import Engine, is_short
from statestream_server.engine.scheduler import Why
from statestream_server.engine.table import Table
from statestream_server.engine.watch import Watch
from statestream_server.engine.work import Priority

_MEASURED: Final = 16
"""Of so many runs of a table the cost of one is measured: to ask for a thread's own time takes the system long."""


class Alone:
    """Runs steps that come alone, in the engine's turn; see `Engine.lone`."""

    def __init__(self, engine: Engine, watch: Watch) -> None:
        """Runs what `engine` would run, and tells `watch` of it."""
        self._engine = engine
        self._watch = watch

    def takes(self, table: Table) -> bool:
        """Whether a step of a table may run here, where nothing waits for the engine."""
        engine = self._engine
        return not (
            engine.tracer is not None
            or engine.line.several
            or self._watch.wary
            or table.observed is not None
            or table.rows.row_by_row
            or table.lane.suspects.any
            or not is_short(table.costs, 1, 1)
        )

    def step(self, table: Table, row: Ints, inputs: Sequence[Array], commit: Callable[[list[Array]], None]) -> bool:
        """Runs a step.

        Args:
            table: A table that `takes`.
            row: [1] the row.
            inputs: One array for every input, [1, 1, ...one step].
            commit: Hears the outputs, [1, 1, ...one step], right after the run.

        Returns:
            Whether it ran; where not, the row is as it was.

        Raises:
            MemoryError: There is none left, and the state may be committed or not: the process must end.
        """
        # Each table counts its own: of those that take turns one would never be measured.
        table.costs.lone += 1
        measured, notes = not table.costs.lone % _MEASURED, self._watch.notes
        used, began = time.thread_time() if measured else 0.0, time.perf_counter()
        try:
            notes.enter(table.mark, table.tag[row], table.position[row])
            outputs, bad = table.rows.step(row, row, inputs)
        except MemoryError:
            raise  # A second run could apply the step twice.
        except Exception:
            return False  # A batch runs it again, and says what is wrong with it.
        finally:
            notes.leave()
        if some(bad):
            return False
        seconds = time.perf_counter() - began
        used = time.thread_time() - used if measured else 0.0
        commit(outputs)
        engine = self._engine
        engine.scheduler.only(Priority.LIVE)
        engine.scheduler.charge(Priority.LIVE, seconds)
        engine.courtesy.lived = began
        if measured and table.costs.observe(1, 1, seconds if engine.on_device else used):
            table.lane.max_slice = table.costs.longest(table.max_slice)
        engine.note(table, 1, 1, Why.ALL, 0.0, seconds, seconds, row.item(0))
        return True
