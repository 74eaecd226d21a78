"""Random numbers by counter: a draw is a function of seed, series, path and step, and of nothing that came before.

The generator is Philox 4x64-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11) as
NumPy has it, whose stream NumPy promises not to change: key (seed, series), counter (block, step, stream, attempt). A
path has `blocks` of four 64-bit words each, so path p has those from p * blocks on, however many paths are drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from statestream_server.arrays import Array, Ints

Floats = npt.NDArray[np.float64]


class Draws:
    """The draws of one step: of so many paths of some series."""

    def __init__(self, seed: int, series: Array, paths: int, step: int, stream: int = 0) -> None:
        """Draws of one value.

        Args:
            seed: 0 to 2**64 - 1.
            series: [N] uint64, the numbers of the series.
            paths: Of each series, P.
            step: Of the forecast.
            stream: Tells values of one step apart.
        """
        self.shape = (len(series), paths)
        self._seed = seed
        self._series = series
        self._step = step
        self._stream = stream
        self._philox = np.random.Philox(key=np.zeros(2, np.uint64))

    def uniforms(self, count: int, attempt: int = 0, series: Ints | None = None) -> Floats:
        """Numbers between 0 and 1, neither of them.

        Args:
            count: How many of each path.
            attempt: Draws anew where a first draw was rejected.
            series: [n] places of the series that are wanted; all where left out.

        Returns:
            [n, P, count].
        """
        chosen = self._series if series is None else self._series[series]
        paths, blocks = self.shape[1], -(-count // 4)
        words = np.empty((len(chosen), paths * blocks * 4), np.uint64)
        key, counter = np.empty(2, np.uint64), np.array([0, self._step, self._stream, attempt], np.uint64)
        state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": counter, "key": key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        key[0] = self._seed
        for place, number in enumerate(chosen):
            key[1] = number
            self._philox.state = state
            words[place] = self._philox.random_raw(words.shape[1])
        mine = words.reshape(len(chosen), paths, blocks * 4)[..., :count]
        return ((mine >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
