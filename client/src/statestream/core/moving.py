"""Whether a stream goes elsewhere where its server asks for that, and what is saved before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statestream.contract.tensors import Ints
from statestream.core.controls import Controls
from statestream.core.table import Table
from statestream.core.tickets import Callback, ControlTicket
from statestream.v1.inference_pb2 import DURABILITY_MODE_NONE


class Moving:
    """A stream moves with all its sessions, where at least half of them are asked for; else all stay, as they may.

    What is answered is saved before, while steps go on. So the next server has little to be sent again, and where the
    store is away nobody waits for it, and nobody moves.
    """

    def __init__(self, table: Table, controls: Controls, on_saved: Callable[[], None]) -> None:
        """`on_saved` hears that the stream may go."""
        self._table = table
        self._controls = controls
        self._on_saved = on_saved
        self._saving: ControlTicket | None = None

    def asked(self, named: Ints) -> None:
        """The server asks for some sessions."""
        live = self._table.live()
        few = not live.size or 2 * np.isin(live, named).sum() < live.size
        if few or self._saving is not None or self._controls.durability == DURABILITY_MODE_NONE:
            return
        self._saving = saving = self._controls.save()
        saving.waiter = Callback(self._saved)
        if saving.done:
            self._saved()

    def end(self) -> None:
        """The stream that was asked is gone."""
        self._saving = None

    def _saved(self) -> None:
        saving = self._saving
        if saving is not None and saving.done:
            self._saving = None
            if not saving.errors:
                self._on_saved()
