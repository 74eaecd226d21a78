"""The oracle: what callers were answered, against what the protocol promises them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace

from statestream.calls import PoolError
from statestream.contract import errors
from statestream.contract.errors import StatestreamError
from statestream_server.settings import Durability
from tests.simulation.plan import RETRY, Plan

History = tuple[int, ...]

START = "start"
"""The caller of start values."""
_NEVER = (
    errors.PositionConflict,
    errors.PositionGap,
    errors.AlreadyApplied,
    errors.BadFrame,
    errors.InternalError,
    errors.WindowFull,
    errors.NonFiniteState,
    errors.ModelNotFound,
)
"""What no caller of these schedules may ever hear: none of them writes twice, or wrongly."""


class Violation(Exception):
    """A promise that was broken."""


@dataclass(slots=True)
class Known:
    """What is known of one session.

    Attributes:
        submitted: Every step that was submitted for it, with its caller and the number of it among that caller's.
        sure: Steps that no crash may take any more.
        starts: Histories that it may begin with: those of the sessions that it was made of.
    """

    submitted: MutableMapping[int, tuple[object, int]] = field(default_factory=dict)
    sure: History = ()
    starts: list[History] = field(default_factory=list)


@dataclass(slots=True)
class Asked:
    """An operation under way.

    Attributes:
        sure: What was sure of its session when it began.
        rows: The sessions of a pool's rows.
        since: When its caller opened the session, or when it began: the session may have failed since, unheard.
    """

    what: str
    session: str
    began: float
    sure: History
    since: float
    rows: tuple[str, ...] = ()


class Oracle:
    """Notes and judges what callers are answered."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.sessions: dict[str, Known] = {}
        self.violations = list[str]()
        self.disturbed = list[tuple[float, float]]()
        """When something failed that callers may notice, from and to."""
        self.healed = float("inf")
        """When everything was well again."""
        self.answered = 0
        self._number = 0

    def known(self, session: str) -> Known:
        """What is known of a session."""
        return self.sessions.setdefault(session, Known())

    def is_wild(self, session: str) -> bool:
        """Whether a session may be reset, deleted or replaced."""
        return not session.startswith("q")

    def violate(self, text: str) -> None:
        """Notes that a promise was broken."""
        self.violations.append(text)

    def made_of(self, copy: str, source: str, history: History) -> None:
        """A session is about to be made of another, which has that history at least."""
        own = self.known(copy)
        own.submitted = ChainMap({}, self.known(source).submitted)
        own.starts.append(history)

    def is_made(self, session: str, history: History) -> None:
        """It was made, and is durable where anything is."""
        self.sure(session, history, f"{session} was made")

    def submit(self, session: str, caller: object, count: int) -> list[int]:
        """Numbers for steps that are about to be submitted."""
        known, found = self.known(session), []
        for _ in range(count):
            self._number += 1
            known.submitted[self._number] = (caller, self._number)
            found.append(self._number)
        return found

    def mark(self, session: str) -> int:
        """A number for a start value: a step of nobody's."""
        return self.submit(session, START, 1)[0]

    def begin(self, what: str, session: str, now: float, since: float | None = None) -> Asked:
        """An operation begins."""
        return Asked(what, session, now, self.known(session).sure, now if since is None else since)

    def answer(self, asked: Asked, submitted: list[int], history: History, line: Line | None) -> None:
        """A step was answered with what the session's history then was."""
        self.answered += 1
        session = asked.session
        say = f"{asked.what} of {session} was answered with {list(history)}"
        self.check(say, session, history)
        if list(history[-len(submitted) :]) != submitted:
            self.violate(f"{say}, which does not end with {submitted}")
        if not self.is_wild(session):
            # A server that lost the session to another one answers until it hears of it; nothing of that is safe.
            late = self.plan.durability != Durability.SYNC and self.plan.servers > 1
            sure = (line.sure if line is not None else ()) if late else asked.sure
            if history[: len(sure)] != sure:
                self.violate(f"{say}; before, {list(sure)} was safe")
            if self.plan.keeps_all or self.plan.durability == Durability.SYNC:
                self.sure(session, history, say)
        if line is not None:
            line.took(self, say, history, len(submitted))

    def check(self, say: str, session: str, history: History) -> None:
        """What must hold of every history that anybody sees."""
        known = self.known(session)
        if len(set(history)) != len(history):
            self.violate(f"{say}: a step was applied twice")
        last: dict[object, int] = {}
        if known.starts and not self.is_wild(session) and not any(history[: len(one)] == one for one in known.starts):
            self.violate(f"{say}: it does not begin with what it was made of, {known.starts}")
        for number in history:
            found = known.submitted.get(number)
            if found is None:
                self.violate(f"{say}: nobody submitted {number} for it")
                return
            caller, order = found
            if order < last.get(caller, 0):
                self.violate(f"{say}: {number} of {caller} came out of turn")
            last[caller] = order

    def sure(self, session: str, history: History, say: str) -> None:
        """Steps are safe from now on."""
        if self.is_wild(session) or (self.plan.durability == Durability.NONE and not self.plan.keeps_all):
            return
        known = self.known(session)
        shorter, longer = sorted((known.sure, history), key=len)
        if longer[: len(shorter)] != shorter:
            self.violate(f"{say}; but {list(known.sure)} was safe")
        known.sure = longer

    def durable(self, session: str, history: History, durable: int) -> None:
        """A caller was told that the first `durable` steps of a history are safe."""
        if durable > self.position(session, history) and not self.is_wild(session):
            self.violate(f"{session} is said to be durable up to {durable}; its history is {list(history)}")
        marks = len(history) - self.position(session, history)
        self.sure(session, history[: marks + durable], f"{session} is durable up to {durable}")

    def position(self, session: str, history: History) -> int:
        """The position of a session with that history: start values count as none."""
        submitted = self.known(session).submitted
        return sum(submitted[number][0] != START for number in history if number in submitted)

    def disturb(self, now: float, seconds: float) -> None:
        """Something fails for so long; what comes of it may take somewhat longer."""
        self.disturbed.append((now, now + seconds))

    def outage(self, now: float) -> int:
        """A server is gone; returns the number by which its end is told."""
        self.disturbed.append((now, float("inf")))
        return len(self.disturbed) - 1

    def over(self, outage: int, now: float) -> None:
        """A server is back; what comes of it may take somewhat longer."""
        began, _ = self.disturbed[outage]
        self.disturbed[outage] = (began, now + 1.0)

    def failed(
        self, asked: Asked, error: BaseException, now: float, allowed: tuple[type[StatestreamError], ...]
    ) -> None:
        """An operation failed."""
        say = f"{asked.what} of {asked.session} at {asked.began:.3f} failed at {now:.3f}: {error!r}"
        if isinstance(error, PoolError) and error.errors:
            for row, one in error.errors.items():
                self.failed(replace(asked, session=asked.rows[row], rows=()), one, now, allowed)
        elif not isinstance(error, StatestreamError):
            self.violate(f"{say}, which is no error of the library's")
        elif isinstance(error, _NEVER):
            self.violate(f"{say}, which must not happen here")
        elif isinstance(error, errors.ServerUnavailable | errors.Draining):
            # Many who open the same session, and calls without a stream, outbid each other; over a store that is slow
            # every bid takes its time.
            many = len(self.plan.callers) > 2 or any(caller.unary for caller in self.plan.callers)
            outbid = self.plan.slow_store >= 0.3 and many
            if outbid and "did not answer the open" in error.message and self._claimed_by_others(asked.session):
                return
            if not any(begin <= now and end >= asked.since - RETRY for begin, end in self.disturbed):
                self.violate(f"{say}, though nothing was wrong")
            elif asked.since > self.healed + 2.0:
                self.violate(f"{say}, though everything was well again")
        elif isinstance(error, errors.StoreUnavailable):
            if not any(fault.kind.startswith("store") for fault in self.plan.faults) and self.plan.slow_store < 0.3:
                self.violate(f"{say}, though the store was there")
        elif isinstance(error, errors.SessionMoved):
            if error.message.startswith("another writer stepped session") and not self.plan.faults:
                # Whoever steps has claimed before, and fenced the claim under which this was refused; only a client
                # whose connection broke claims anew and sends again what another has overtaken.
                self.violate(f"{say}: a chunk was applied under a claim that was not the newest")
            # A pool that ends tells of one row, without saying which.
            if not any(map(self._claimed_by_others, asked.rows or (asked.session,))):
                self.violate(f"{say}, though nobody else opened it")
        elif isinstance(error, errors.StateLost):
            forgets = self.plan.durability == Durability.NONE and (self.plan.crashes or self.plan.servers > 1)
            if not forgets and not self._made_anew(asked.session):
                self.violate(f"{say}, though nothing may be lost")
        elif not isinstance(error, allowed):
            self.violate(f"{say}, which it may not")

    def _made_anew(self, session: str) -> bool:
        """Whether a plan has the session deleted or replaced: whoever had it before may meet a shorter one."""
        operations = (one for caller in self.plan.callers for one in caller.operations)
        return self.is_wild(session) and any(
            one.kind in ("delete", "unary_delete", "replace", "restore") and session == f"w{one.session}"
            for one in operations
        )

    def _claimed_by_others(self, session: str) -> bool:
        number = int(session[1]) if session[1].isdigit() else 0
        return "-" in session or self.is_wild(session) or self.plan.shared(number)


class Line:
    """One session as one client has it open: its answers are one history that only it lengthens."""

    def __init__(self, sure: History) -> None:
        self.sure = sure
        """What was safe before it was opened."""
        self.history: History | None = None

    def took(self, oracle: Oracle, say: str, history: History, count: int) -> None:
        """An answer came."""
        before = self.history
        if before is not None and len(history) >= len(before):
            if history[: len(before)] != before:
                oracle.violate(f"{say}; the one before was {list(before)}")
        elif before is not None and before[: len(history)] != history:
            oracle.violate(f"{say}; another was {list(before)}")
        if before is None or len(history) > len(before):
            self.history = history
