"""Plans: what callers do and what fails, all of it drawn from one seed; smaller ones are cut from it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from statestream.arguments import Mode
from statestream_server.settings import Durability

RETRY = 6.0
"""Seconds that operations of clients outlast a server that is away."""
HEALED = 8.0
"""Seconds after which nothing fails any more."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a caller does.

    Attributes:
        kind: The method of callers.Caller.
        session: Which session, by number.
        pause: Seconds before it.
        count: Steps.
        mode: How it is opened.
        cancel: Seconds after which it is cancelled, None for never.
        deadline: Seconds of a call without a client.
    """

    kind: str
    session: int
    pause: float
    count: int = 1
    mode: Mode = "either"
    cancel: float | None = None
    deadline: float = 3.0


@dataclass(frozen=True, slots=True)
class Calls:
    """One caller: a task of a client, or one that makes unary calls. It does one operation after the other."""

    client: int
    operations: tuple[Operation, ...]
    unary: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What fails.

    Attributes:
        kind: The method of faults.Faults.
        at: Seconds from the beginning.
        target: Which server or client, by number.
        seconds: How long it lasts.
        number: A size, by kind.
    """

    kind: str
    at: float
    target: int = 0
    seconds: float = 0.0
    number: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule but for the order of callbacks.

    Attributes:
        seed: What it was drawn from, and what all else is drawn from.
        durability: The servers' mode.
        interval: Seconds between checkpoints.
        servers: How many replicas.
        wild: Sessions from that number on are reset, deleted, replaced and restored, too.
    """

    seed: int
    durability: Durability
    interval: float
    servers: int
    sessions: int
    wild: int
    callers: tuple[Calls, ...]
    faults: tuple[Fault, ...]
    jitter: float
    stalls: float
    slow_network: float
    slow_store: float

    @property
    def crashes(self) -> bool:
        """Whether a server loses what it has in memory."""
        return any(fault.kind in ("crash", "crash_within", "drain") for fault in self.faults)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing that was answered may be lost, saved or not: one server that stays."""
        return self.servers == 1 and not self.crashes

    def shared(self, session: int) -> bool:
        """Whether more than one client, or a call without one, opens a session."""
        who = set[object]()
        for number, caller in enumerate(self.callers):
            if any(one.session == session or (one.kind == "pool" and session < 2) for one in caller.operations):
                who.add(("unary", number) if caller.unary else caller.client)
                if caller.unary and self.servers > 1:
                    who.add(("unary elsewhere", number))  # Each server claims for such calls in its own name.
        return len(who) > 1

    def smaller(self) -> Iterator[Plan]:
        """The same with less in it: halves first, then single operations."""
        for number in range(len(self.faults)):
            yield replace(self, faults=self.faults[:number] + self.faults[number + 1 :])
        for number, caller in enumerate(self.callers):
            if len(self.callers) > 1:
                yield replace(self, callers=self.callers[:number] + self.callers[number + 1 :])
            size = len(caller.operations)
            for width in dict.fromkeys((max(1, size // 2), 1)):
                for first in range(0, size, width):
                    some = caller.operations[:first] + caller.operations[first + width :]
                    yield self._with(number, some)
            for first, one in enumerate(caller.operations):
                if one.cancel is not None:
                    some = (*caller.operations[:first], replace(one, cancel=None), *caller.operations[first + 1 :])
                    yield self._with(number, some)

    def _with(self, number: int, operations: tuple[Operation, ...]) -> Plan:
        callers = list(self.callers)
        callers[number] = replace(callers[number], operations=operations)
        return replace(self, callers=tuple(callers))

    def size(self) -> int:
        """How much is in it."""
        return len(self.faults) + sum(len(caller.operations) for caller in self.callers)


_QUIET = {
    "step": 10,
    "stream": 2,
    "flush": 2,
    "close": 2,
    "open": 2,
    "pool": 2,
    "fork": 1,
    "snapshot": 1,
    "look": 1,
    "born": 1,
}
_WILD = _QUIET | {"reset": 3, "delete": 2, "replace": 1, "restore": 1, "begin": 3}
_UNARY = {"unary_step": 4, "unary_twice": 3, "unary_flush": 1, "unary_fork": 1}
_UNARY_WILD = _UNARY | {"unary_delete": 1}
_FAULTS = {
    "crash": 4,
    "crash_within": 4,
    "drain": 1,
    "cut": 6,
    "silence": 2,
    "refuse": 1,
    "slow": 2,
    "store_fails": 4,
    "store_pauses": 3,
    "store_slow": 2,
    "clock": 2,
    "client_clock": 2,
    "stop": 2,
    "client_dies": 1,
}


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    r = random.Random(seed)
    modes = (Durability.INTERVAL, Durability.SYNC, Durability.NONE)
    durability = r.choices(modes, (5, 4, 1))[0]
    servers = r.choice((1, 1, 2))
    sessions = r.randint(1, 4)
    wild = r.randint(0, sessions)
    clients = r.choice((1, 2, 2, 3))
    callers = [_caller(r, client % clients, sessions, wild) for client in range(r.randint(clients, clients + 2))]
    if r.random() < 0.4:
        callers.append(_unary(r, sessions, wild))
    calm = r.random() < 0.1
    kinds = list(_FAULTS) if r.random() < 0.5 else r.sample(list(_FAULTS), 3)
    faults = [] if calm else [_fault(r, kinds, servers, clients) for _ in range(r.randint(1, 6))]
    return Plan(
        seed,
        durability,
        r.choice((0.1, 0.3, 1.0)),
        servers,
        sessions,
        wild,
        tuple(callers),
        tuple(sorted(faults, key=lambda fault: fault.at)),
        r.choice((0.0, 0.002, 0.05)),
        r.choice((0.0, 0.0, 0.01, 0.1)),
        r.choice((0.0005, 0.005, 0.05)),
        r.choice((0.0005, 0.005, 0.05, 0.3)),
    )


def _caller(r: random.Random, client: int, sessions: int, wild: int) -> Calls:
    return Calls(client, tuple(_operation(r, sessions, wild, _QUIET, _WILD) for _ in range(r.randint(2, 8))))


def _unary(r: random.Random, sessions: int, wild: int) -> Calls:
    return Calls(
        99, tuple(_operation(r, sessions, wild, _UNARY, _UNARY_WILD) for _ in range(r.randint(2, 6))), unary=True
    )


def _operation(
    r: random.Random, sessions: int, wild: int, quiet_kinds: dict[str, int], wild_kinds: dict[str, int]
) -> Operation:
    session = r.randrange(sessions)
    kinds = quiet_kinds if session < wild else wild_kinds
    kind = r.choices(list(kinds), list(kinds.values()))[0]
    return Operation(
        kind,
        session,
        r.choice((0.0, 0.0, 0.001, 0.02, 0.3, 1.0)),
        r.choice((1, 1, 1, 2, 3)),
        r.choice(("either", "either", "either", "create", "resume")),
        r.choice((0.0, 0.001, 0.005, 0.02, 0.2)) if r.random() < 0.15 else None,
        r.choice((0.01, 0.05, 0.3)) if r.random() < 0.3 else 3.0,
    )


def _fault(r: random.Random, kinds: list[str], servers: int, clients: int) -> Fault:
    kind = r.choices(kinds, [_FAULTS[one] for one in kinds])[0]
    targets = clients if kind.startswith("client_") else servers
    return Fault(
        kind,
        r.choice((0.02, 0.1, 0.5, 2.0)) * (0.2 + r.random()),
        r.randrange(targets),
        r.choice((0.05, 0.3, 1.0, 3.0)),
        r.random(),
    )
