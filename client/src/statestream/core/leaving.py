"""How a client that is closed lets go of its sessions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from statestream.core.stream import StreamCore
from statestream.core.table import State
from statestream.core.tickets import Callback, ControlTicket


def leave(core: StreamCore, notify: Callable[[], None]) -> None:
    """Lets every session go; `notify` is called once when the server has answered, or at once without one.

    Sessions that end with their caller are deleted; the others are detached, which makes them durable.
    """
    table = core.table
    handles = np.flatnonzero(table.state[: table.size] == State.OPEN)
    ephemeral = np.array([group.ephemeral for group in table.groups], np.bool_)
    ending = ephemeral[table.group[handles]] if handles.size else np.zeros(0, np.bool_)
    staying = handles[~ending]
    tickets: list[ControlTicket] = []
    if core.online and handles.size:
        tickets = [
            core.close(some, delete=delete) for some, delete in ((staying, False), (handles[ending], True)) if some.size
        ]
    left = len(tickets)

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            notify()

    for ticket in tickets:
        ticket.waiter = Callback(count)
    if not tickets:
        notify()
