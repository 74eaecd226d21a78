"""Warming: runs a model once with every size of batch that will come, before anybody waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from statestream_server.models.proof.draws import Draws
from statestream_server.models.rows import FIRST_ROW, SCRATCH_ROW, Rows, is_batched

_log = logging.getLogger(__name__)
_MOST_ROWS = 4096
_LONGEST = 0.008
"""Seconds; the engine cuts batches long before they take that."""
_BUDGET = 30.0
"""Seconds after which no larger batch is begun."""


def warm(rows: Rows, way: Draws, where: str, clock: Callable[[], float] = time.perf_counter) -> int:
    """Runs batches of every power of two of rows and steps, up to those that the engine would cut.

    A device prepares when it first meets a shape: it picks kernels, plans and takes memory, which can take longer than
    a thousand runs. What is run changes the scratch row only.

    Args:
        rows: The memory as it serves, with room for one session and none in it yet.
        way: How inputs are drawn.
        where: The file, for the log.
        clock: Seconds that pass.

    Returns:
        How many shapes were run.
    """
    began, shapes, steps, rng = clock(), 0, 1, np.random.default_rng(4)
    most = _MOST_ROWS if is_batched(way.signature) else 1
    rows.reset(np.asarray([FIRST_ROW]))
    while steps <= rows.max_slice and clock() - began < _BUDGET:
        count = 1
        while count <= most and clock() - began < _BUDGET:
            inputs = way.inputs(count, steps, rng)
            source, target = np.full(count, FIRST_ROW), np.full(count, SCRATCH_ROW)
            rows.step(source, target, inputs)
            shapes += 1
            start = clock()
            rows.step(source, target, inputs)
            if clock() - start > _LONGEST:
                break
            count *= 2
        _log.info("%s: warmed up to %d rows of %d steps", where, min(count, most), steps)
        steps *= 2
    _log.info("%s: %d sizes of batches are warm after %.1f s", where, shapes, clock() - began)
    return shapes
