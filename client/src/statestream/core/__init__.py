"""The client's protocol without I/O: sans-I/O core shared by the synchronous and the asyncio edge."""

from statestream.core.controls import Kind
from statestream.core.feeds import Feed
from statestream.core.flights import Kind as PredictKind
from statestream.core.flights import PredictTicket
from statestream.core.leaving import leave
from statestream.core.stream import StreamCore
from statestream.core.table import Group, State, Table
from statestream.core.tickets import (
    ANSWER_BYTES,
    ControlTicket,
    Lane,
    OpenTicket,
    PartsTicket,
    PoolTicket,
    StepTicket,
    Ticket,
    value_of,
)

__all__ = [
    "ANSWER_BYTES",
    "ControlTicket",
    "Feed",
    "Group",
    "Kind",
    "Lane",
    "OpenTicket",
    "PartsTicket",
    "PoolTicket",
    "PredictKind",
    "PredictTicket",
    "State",
    "StepTicket",
    "StreamCore",
    "Table",
    "Ticket",
    "leave",
    "value_of",
]
