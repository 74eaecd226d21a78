"""Walks: rows that fork at many moments of histories, each of which is stepped once, not once a moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream_server.arrays import Array, Ints
from statestream_server.drivers.drive import Drive


async def walk(base: Drive, forks: Drive, inputs: Sequence[Array], starts: Ints, counts: Ints, moments: Ints) -> None:
    """Steps rows through the past of their series, and forks them on the way.

    Args:
        base: Its n rows are the series'; those whose last moment has come are freed.
        forks: Gets a row for every moment, in the order of `moments`; has none yet.
        inputs: For every input packed [S, ...one step].
        starts: [n] where in them the past of each series begins.
        counts: [n] the moments of each, 1 at least.
        moments: [M] the steps before each, 1 at least, ascending within a series, one series after the other.

    Raises:
        StatestreamError: A step was refused, or there is no memory for a fork.
    """
    first = np.cumsum(counts) - counts
    left, done = np.arange(len(counts)), np.zeros(len(counts), np.int64)
    order: list[Ints] = []
    for number in range(int(counts.max())):
        on = np.flatnonzero(counts[left] > number)
        if len(on) < len(left):
            await base.follow(on)
            left = left[on]
        place = first[left] + number
        steps = moments[place] - done[left]
        at = ranges(starts[left] + done[left], steps)
        await base.warm(steps, [array[at] for array in inputs])
        done[left] = moments[place]
        await forks.add(base.rows)
        order.append(place)
    forks.rows = forks.rows[np.argsort(np.concatenate(order))]


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """The places start … start + length - 1 of each, one after the other."""
    ends = np.cumsum(lengths)
    found: Ints = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]))
    return found
