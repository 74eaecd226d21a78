"""How a client that is closed lets go of its sessions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statestream.core.stream import StreamCore
from statestream.core.table import State
from statestream.core.tickets import Callback


def leave(core: StreamCore, notify: Callable[[], None]) -> None:
    """Lets every session go; `notify` is called once when the server has answered, or at once without one.

    Sessions that end with their caller are deleted; the others are detached, which makes them durable.
    """
    table = core.table
    handles = np.flatnonzero(table.state[: table.size] == State.OPEN)
    table.holders[handles] = 1  # All of its callers go at once.
    if core.online and handles.size:
        ticket = core.close(handles, delete=False)
        if not ticket.done:
            ticket.waiter = Callback(notify)
            return
    notify()
