"""What there is at one moment: a client, a wire, two owners, a store, and the faults that are left.

Everything is a tuple of small numbers and tuples, so that a state is its own hash key. The memory of a session
is the tuple of all inputs applied to it, in order, and the output of a chunk is that tuple after the chunk: so
a gap, a repetition or a foreign input shows in the value itself. A chunk is one step. A reply to the chunk at
position p is `memory[:p + 1]`, so the replies that are kept need one number: the position of the oldest.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.model.rules import FORK, STATES, Faults, Setting

Memory = tuple[int, ...]
"""Inputs in the order in which they were applied."""
MARK: Final = -1
"""A reset among the inputs."""
Message = tuple[object, ...]
"""A frame: its kind, then its fields."""

# Frames to an owner.
OPEN: Final = 0
"""(OPEN, mode, incarnation, seen epoch, replay position, acknowledged position, whether replies are wanted, the
state to begin with or None)"""
CHUNK: Final = 1
"""(CHUNK, start, input, acknowledged position)"""
ACK: Final = 2
"""(ACK, acknowledged position)"""
DELETE: Final = 3
"""(DELETE, the epoch that it ends)"""
MAKE: Final = 4
"""(MAKE, mode, incarnation, state): a fork (mode create) or a restore (mode replace), a call of its own"""
CLOSE: Final = 5
"""(CLOSE, the position behind which it stands)"""
FLUSH: Final = 6
"""(FLUSH, the position up to which all is to be durable)"""

# Frames to the client.
OPENED: Final = 10
"""(OPENED, epoch, position, durable position, base, memory, cursor: -1 where it is the position)"""
RESULT: Final = 11
"""(RESULT, base, output, durable position)"""
DURABLE: Final = 12
"""(DURABLE, durable position)"""
CLOSED: Final = 13
"""(CLOSED,)"""
ERROR: Final = 14
"""(ERROR, reason, start); unasked, of the session as a whole, with start -1"""
MADE: Final = 15
"""(MADE,)"""
OTHER: Final = 16
"""(OTHER,): what the first of two handles of a connection hears, a reply or an error"""
MOVE: Final = 17
"""(MOVE,): the session is to be taken elsewhere"""
FLUSHED: Final = 18
"""(FLUSHED,): all is durable that a flush was about"""

# Modes.
CREATE: Final = 1
RESUME: Final = 2
EITHER: Final = 3
REPLACE: Final = 4

# Reasons.
GAP: Final = "POSITION_GAP"
APPLIED: Final = "ALREADY_APPLIED"
CONFLICT: Final = "POSITION_CONFLICT"
LOST: Final = "STATE_LOST"
MOVED: Final = "SESSION_MOVED"
UNKNOWN: Final = "SESSION_NOT_FOUND"
EXISTS: Final = "SESSION_EXISTS"
UNAVAILABLE: Final = "STORE_UNAVAILABLE"
POISONED: Final = "QUARANTINED"
REFUSED: Final = "NON_FINITE_STATE"
BEHIND: Final = "POSITION_GAP of a close or a flush"
FULL: Final = "WINDOW_FULL"

# How a claim goes that is granted.
CREATED: Final = 0
HELD: Final = 1
TAKEN: Final = 2

# What the client is doing.
OFF: Final = 0
OPENING: Final = 1
READY: Final = 2
TOLD: Final = 3

# What the application wants besides stepping.
STEP: Final = 0
RESET: Final = 1
FORGET: Final = 2
FORKED: Final = 3
RESTORE: Final = 4
CLOSING: Final = 6
UNCERTAIN: Final = 5
"""It goes on after a restore that failed: with the session as it was, or as it was to be."""

Begin = tuple[int, Memory]
"""A state to begin with: its base and what was applied to it; the model's start values are (0, ())."""


class Client(NamedTuple):
    """The one client: its application, its library, its source of inputs."""

    phase: int = OFF
    intent: int = STEP
    base: int = 0
    """The state that the session begins from: 0 for the model's start values."""
    born: int = 0
    """Whether it opens with initial states."""
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
    moving: bool = False
    """Whether it was asked to go elsewhere, and sends no more here."""
    wanted: int = -1
    """Up to where the application waits for all to be durable, -1 for nowhere."""
    asked: bool = False
    """Whether a close, or a flush, is on its way."""
    owed: int = 0
    """The end of what the first of two handles has sent, while it waits for the reply."""
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
    before: int = 0
    """The number of the first handle, where there is a second."""


class Row(NamedTuple):
    """A session in the memory of an owner."""

    epoch: int
    began: int
    """The epoch under which the row was made."""
    incarnation: int
    base: int
    memory: Memory
    acked: int
    oldest: int
    """The position of the oldest reply that is kept."""
    durable: int
    dirty: bool
    bound: int
    """The connection that has the session, 0 for none."""
    next: int
    """The position at which the next chunk that is accepted starts."""
    queue: tuple[tuple[int, int], ...] = ()
    """Accepted chunks: (connection, input)."""
    writer: int = 0
    """Who claimed it: 0 for the client, 1 for another one."""


class Copy(NamedTuple):
    """A session in the store, or on its way there. One that is not live is a tombstone."""

    live: bool
    epoch: int
    fence: int
    """Rows of an epoch below it may not be saved, or gone on with."""
    incarnation: int
    base: int
    memory: Memory
    acked: int
    oldest: int
    owner: int
    """Who claimed it, -1 for a process that is dead."""
    cursor: int = -1
    """The input that its caller is to read next, where that is not the one behind its memory."""
    writer: int = 0
    """Who claimed it: 0 for the client, 1 for another one."""


class Claim(NamedTuple):
    """A claim on its way: asked, then decided by the store, then installed; the answer may be lost between."""

    frame: Message
    """OPEN or MAKE."""
    number: int
    """The connection that asks, 0 where nobody listens."""
    owner: int
    held: int
    """The epoch of the row that the owner had when it asked, 0 for none."""
    position: int
    """That row's position."""
    verdict: int = -1
    """How it went, -1 while it is not decided."""
    record: Copy | None = None
    """The record after it."""
    flushed: bool = False
    """Whether the store has forgotten it since."""


class Unsaid(NamedTuple):
    """What a connection is told once the row is saved (only without `claims_carry_state`)."""

    number: int
    message: Message
    begin: Begin | None
    """The state that is yet to be put into the row."""


class Parked(NamedTuple):
    """A chunk that came as a call of its own and waits out a claim."""

    number: int
    epoch: int
    """The claim under which it came."""
    start: int
    value: int


class Sleeper(NamedTuple):
    """A session that left memory while a connection had it."""

    number: int
    epoch: int


class Owner(NamedTuple):
    """A server."""

    asleep: bool = False
    unsure: bool = False
    """It slept, and has had no word from the store since."""
    row: Row | None = None
    writing: Copy | None = None
    """A checkpoint that was captured and is not written yet."""
    claim: Claim | None = None
    unsaid: Unsaid | None = None
    waiting: tuple[tuple[int, int, int], ...] = ()
    """Replies that wait for the next save: (connection, epoch, start)."""
    going: tuple[tuple[int, int, int], ...] = ()
    """Those that wait for the one on its way."""
    parked: Parked | None = None
    sleepers: tuple[Sleeper, ...] = ()


class Store(NamedTuple):
    """The store. `forgot` says that it broke a promise: what it called durable was flushed. `buried` says that the
    session was deleted once: a flush that takes with it what is known of that is not looked at."""

    record: Copy | None = None
    away: bool = False
    forgot: bool = False
    buried: bool = False
    late: Claim | None = None
    """A claim that nobody waits for any more, and that is not decided yet."""
    holder: int = -1
    """The owner whose row is the newest there is, -1 where the record is. Nobody knows that; invariants do."""
    visited: bool = False
    """Whether another client's claim was granted."""
    taken: int = 0
    """The epoch of the last such claim that the store knows of."""


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
    sync: bool = False
    deaths: int = -1
    """How often the first input ended the process that ran it, -1 where it does not."""
    ahead: int = 2
    """How many chunks are on their way at a time, at most."""
    kept: int = 0
    """How many replies an owner keeps, at most; 0 for any number."""


class Violation(Exception):
    """An invariant does not hold."""


def start(setting: Setting) -> State:
    """Nothing has happened yet."""
    inputs = tuple(range(setting.chunks))
    if setting.mark >= 0:
        inputs = (*inputs[: setting.mark], MARK, *inputs[setting.mark :])
    client = Client(inputs=inputs, base=int(setting.born == STATES), born=setting.born)
    if setting.born == FORK:
        inputs = (900, *client.inputs)
        client = client._replace(intent=FORKED, inputs=inputs, delivered=1, floor=1, sent=1, got=1)
    nothing = Store(), setting.faults, 0, setting.sync, setting.poison - 1, setting.ahead, setting.kept
    return State(client, None, (), (Owner(), Owner()), *nothing)


def since_mark(inputs: Memory) -> Memory:
    """What came after the last reset."""
    at = max((place + 1 for place, value in enumerate(inputs) if value == MARK), default=0)
    return inputs[at:]


def with_owner(state: State, number: int, owner: Owner) -> State:
    """The state with another owner A (0) or B (1)."""
    owners = (owner, state.owners[1]) if number == 0 else (state.owners[0], owner)
    return state._replace(owners=owners)
