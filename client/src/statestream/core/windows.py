"""Windows: the bytes that are under way of each model on the stream of this moment, and how many may be."""

from __future__ import annotations

from typing import Final

from statestream.core.tickets import Lane

MOST: Final = 16 << 20
"""A window is not used beyond it: the server is busy with less, and more would only wait there."""


class Window:
    """What is under way of one model, in one version.

    It is counted as the server does, and for longer: from before a frame is written until its last answer was read. So
    the server never finds more in it.

    Attributes:
        held: Bytes under way.
        most: How many may be; one frame may have more where nothing else is under way.
        full: Frames wait for room, and what is asked for later waits behind them; while frames are chosen.
    """

    __slots__ = ("full", "held", "most")

    def __init__(self) -> None:
        self.held = 0
        self.most = MOST
        self.full = False

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes more may be under way."""
        return not self.held or self.held + nbytes <= self.most


class Windows:
    """The windows of one stream."""

    def __init__(self) -> None:
        self._by_model: dict[tuple[str, int], Window] = {}
        self._by_lane: dict[Lane, Window] = {}

    def __len__(self) -> int:
        return len(self._by_model)

    @property
    def held(self) -> int:
        """Bytes under way of all models."""
        return sum(window.held for window in self._by_model.values())

    def of(self, lane: Lane) -> Window:
        """The window that chunks of a lane have room in."""
        window = self._by_lane.get(lane)
        if window is None:
            window = self._by_lane[lane] = self._window(lane.model, lane.version)
        return window

    def told(self, model: str, version: int, most: int) -> None:
        """The server said how many bytes a window has; 0 where it says nothing."""
        if most:
            self._window(model, version).most = min(most, MOST)

    def lost(self) -> None:
        """The stream is gone, and nothing is under way."""
        for window in self._by_model.values():
            window.held = 0

    def _window(self, model: str, version: int) -> Window:
        return self._by_model.setdefault((model, version), Window())
