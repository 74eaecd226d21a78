"""What there is at one moment: a client, a wire, two owners, a store, and the faults that are left.

Everything is a tuple of small numbers and tuples, so that a state is its own hash key. The memory of a session
is the tuple of all inputs applied to it, in order, and the output of a chunk is that tuple after the chunk: so
a gap, a repetition or a foreign input shows in the value itself. A chunk is one step. A reply to the chunk at
position p is `memory[:p + 1]`, so the replies that are kept need one number: the position of the oldest.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.model.rules import Faults

Memory = tuple[int, ...]
"""Inputs in the order in which they were applied."""
Message = tuple[object, ...]
"""A frame: its kind, then its fields."""

# Frames to an owner.
OPEN: Final = 0
"""(OPEN, mode, incarnation, seen epoch, replay position, acknowledged position, whether replies are wanted)"""
CHUNK: Final = 1
"""(CHUNK, start, input, acknowledged position)"""
ACK: Final = 2
"""(ACK, acknowledged position)"""
DELETE: Final = 3
"""(DELETE,)"""

# Frames to the client.
OPENED: Final = 10
"""(OPENED, epoch, position, durable position)"""
RESULT: Final = 11
"""(RESULT, output, durable position)"""
DURABLE: Final = 12
"""(DURABLE, durable position)"""
CLOSED: Final = 13
"""(CLOSED,)"""
ERROR: Final = 14
"""(ERROR, reason, start)"""

# Modes.
EITHER: Final = 3
REPLACE: Final = 4

# Reasons.
GAP: Final = "POSITION_GAP"
APPLIED: Final = "ALREADY_APPLIED"
CONFLICT: Final = "POSITION_CONFLICT"
LOST: Final = "STATE_LOST"
MOVED: Final = "SESSION_MOVED"
UNKNOWN: Final = "SESSION_NOT_FOUND"

# What the client is doing.
OFF: Final = 0
OPENING: Final = 1
READY: Final = 2
TOLD: Final = 3

# What the application wants besides stepping.
STEP: Final = 0
RESET: Final = 1
FORGET: Final = 2


class Client(NamedTuple):
    """The one client: its application, its library, its source of inputs."""

    phase: int = OFF
    intent: int = STEP
    inputs: Memory = ()
    """All that it will ever send, in order."""
    delivered: int = 0
    """Outputs that the application has; it keeps them over a restart, as a file would."""
    floor: int = 0
    """The oldest input that its source still has."""
    durable: int = 0
    """The highest durable position that it was told."""
    seen: int = 0
    """The last epoch that it saw."""
    incarnation: int = 0
    sent: int = 0
    """Where the next chunk that is sent starts."""
    got: int = 0
    """Where the next chunk that is answered starts."""
    acked: int = 0
    """What the owner was told of `delivered`."""
    bound: bool = False
    """Whether an open was ever answered."""
    wants_replies: bool = False
    fresh: bool = False
    """The session was deleted and must start at position 0."""
    changed: bool = False
    """Its inputs are not those that an earlier run sent."""
    told: str = ""
    """Why it cannot go on, where it cannot."""


class Wire(NamedTuple):
    """A connection. `up` and `down` are in order; nothing is lost while it lives."""

    number: int
    owner: int
    up: tuple[Message, ...] = ()
    down: tuple[Message, ...] = ()
    heard: bool = False
    """Of connections that the client left: whether a hanging twin still listens."""


class Row(NamedTuple):
    """A session in the memory of an owner."""

    epoch: int
    incarnation: int
    memory: Memory
    acked: int
    oldest: int
    """The position of the oldest reply that is kept."""
    durable: int
    dirty: bool
    bound: int
    """The connection that has the session."""
    next: int
    """The position at which the next chunk that is accepted starts."""
    queue: tuple[tuple[int, int], ...] = ()
    """Accepted chunks: (connection, input)."""


class Copy(NamedTuple):
    """A session in the store, or on its way there. One that is not live is a tombstone."""

    live: bool
    epoch: int
    incarnation: int
    memory: Memory
    acked: int
    oldest: int


class Claim(NamedTuple):
    """An open whose claim is granted and whose row is not made yet (only without `fence_lasts`)."""

    number: int
    frame: Message
    verdict: int
    record: Copy


class Owner(NamedTuple):
    """A server."""

    asleep: bool = False
    unsure: bool = False
    """It slept, and has had no word from the store since."""
    row: Row | None = None
    writing: Copy | None = None
    """A checkpoint that was captured and is not written yet."""
    claim: Claim | None = None


class Store(NamedTuple):
    """The store. `forgot` says that it broke a promise: what it called durable was flushed. `buried` says that the
    session was deleted once: a flush that takes with it what is known of that is not looked at."""

    record: Copy | None = None
    away: bool = False
    forgot: bool = False
    buried: bool = False


class State(NamedTuple):
    """Everything."""

    client: Client
    wire: Wire | None
    left: tuple[Wire, ...]
    """Connections that the client gave up and that may still deliver."""
    owners: tuple[Owner, Owner]
    store: Store
    faults: Faults
    connections: int = 0


class Violation(Exception):
    """An invariant does not hold."""


def start(chunks: int, faults: Faults) -> State:
    """Nothing has happened yet."""
    return State(Client(inputs=tuple(range(chunks))), None, (), (Owner(), Owner()), Store(), faults)


def with_owner(state: State, number: int, owner: Owner) -> State:
    """The state with another owner A (0) or B (1)."""
    owners = (owner, state.owners[1]) if number == 0 else (state.owners[0], owner)
    return state._replace(owners=owners)
