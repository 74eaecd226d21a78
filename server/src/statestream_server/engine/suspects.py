"""Suspects: rows whose inputs the model refused of late; they run apart from the others for a while. No clock."""

from __future__ import annotations

import numpy as np

from statestream_server.arrays import Bools, Ints, grown

SUSPICION = 16
"""Good runs after which a row whose inputs the model refused runs among the others again."""


class Suspects:
    """Those of one table's rows."""

    def __init__(self) -> None:
        """None is suspected."""
        self._left = np.empty(0, np.uint8)
        """How many good runs of each row until it runs among the others again."""
        self.any = False
        """Whether there are some, or were at the last look."""

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity` - 1."""
        self._left = grown(self._left, capacity, 0)

    def are(self, rows: Ints) -> Bools:
        """Which of `rows` are suspected."""
        return np.asarray(self._left[rows] > 0)

    def suspect(self, rows: Ints) -> None:
        """Has rows run apart from the others until they ran well for a while."""
        self._left[rows] = SUSPICION
        self._look()

    def trust(self, rows: Ints) -> None:
        """Notes that suspects ran well once; rows that are none may be among them."""
        if self.any:
            self._left[rows] -= self._left[rows] > 0
            self._look()

    def acquit(self, rows: Ints) -> None:
        """Suspects rows no longer: they are another session's from now on."""
        if self.any:
            self._left[rows] = 0

    def _look(self) -> None:
        self.any = bool((self._left > 0).any())
