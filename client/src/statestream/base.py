"""What sessions and pools of both twins share: who they are and where they stand. No I/O lives here."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from statestream import html
from statestream.arguments import check_cursors, check_flag, session_ids
from statestream.contract.errors import Closed, StatestreamError
from statestream.contract.tensors import Ints
from statestream.core import Feed, PoolTicket
from statestream.layout import Input
from statestream.parts import Division, Opened, Openings, Share, gathered
from statestream.rows import Rows, chosen
from statestream.scores import answered
from statestream.shards import Doer, L
from statestream.steptables import read_steps, says_whose
from statestream.v1.inference_pb2 import MARK_CURSOR

S = TypeVar("S")

LOOKAHEAD = 32
"""How many items a session's `stream` sends before it waits for the first output."""

POOL_LOOKAHEAD = 4
"""The same of a pool, whose items are large: with some under way neither side waits for the other; more only queue."""


FEED_LOOKAHEAD = 256
"""The same of a feed, whose items are of many sessions."""


@dataclass(frozen=True, eq=False, slots=True)
class PoolStep:
    """An item of `Pool.stream` that is not for all rows alike: the arguments of `Pool.step`.

    Attributes:
        x: [N, F] for one step each, [N, T, F] for T; a dict by name where the model has several inputs; or a table.
        rows: [N] which sessions (places, ids, or a mask over all); all of them where left out.
        lengths: [N] how many of the T steps each row has, 0 to T; the rest of x is padding.
        cursors: [N] where the caller is behind the steps of each row, at most 256 bytes each; None for rows without.
        score: Whether the steps are to be scored.
    """

    x: Input
    rows: Rows | None = None
    lengths: Sequence[int] | Ints | None = None
    cursors: Sequence[bytes | None] | None = None
    score: bool = False


class Open(ABC, Generic[S]):
    """What is open until its caller closes it; several threads may have it."""

    def __init__(self) -> None:
        self._last: S | None = None
        self._ending: object = None
        # Threads submit under it: behind a close, what the core is told could be about the handle's next session.
        self._turn = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether it was closed or deleted through this object; true from the moment that is asked for."""
        return self._last is not None

    def _submit(self, begin: Callable[[], object]) -> None:
        """Has the core begin something, unless this object is closed."""
        with self._turn:
            self._check()
            begin()

    def _end(self, begin: Callable[[], object]) -> None:
        """Closes this object and has the core begin its close; what was submitted before comes before that.

        Args:
            begin: Does it; where it was done before, it does nothing.
        """
        try:
            with self._turn:
                self._check()
                self._ending = begin
                self._last = self._stand()
                begin()
        except BaseException:
            # Ctrl-C may come right before it was asked for; what counts as closed has to be.
            if self._ending is begin and self.closed:
                begin()
            raise

    @abstractmethod
    def _stand(self) -> S:
        """Where it stands now, as it is told once it is closed."""

    @abstractmethod
    def _check(self) -> None:
        """Raises Closed where it is closed."""


class SessionBase(Open[tuple[int, int, int, bytes]]):
    """One session: its names and positions.

    Attributes:
        model: The model's name.
        version: The version to which the session is pinned.
        id: The session's id, unique within the model.
        created: Whether opening it created it.
        ephemeral: Whether it is deleted when it is closed: so are sessions that were opened without an id.
    """

    def __init__(
        self,
        opened: Opened[L],
        session_id: str,
        *,
        ephemeral: bool,
        made: bool,
    ):
        layout, ticket = opened.layout, opened.ticket
        self._doer: Doer = opened.parts[0].link
        self._core = self._doer.core
        self._layout = layout
        self._openings: Openings[Any] = opened.openings
        super().__init__()
        self._handle = int(ticket.handles[0])
        self._replies = [(position, answered(outputs)) for position, outputs in ticket.replies.get(0, ())]
        self.model = layout.model.name
        self.version = layout.model.version
        self.id = session_id
        self.created = made or bool(ticket.created[0])
        self.ephemeral = ephemeral

    def __del__(self) -> None:
        """A session that nobody has any more, and nobody closed, is anybody's; without an id of its own it ends."""
        # Nothing is there yet where the constructor was interrupted.
        if getattr(self, "_last", self) is None:
            _left_behind(self._doer, self._openings, ephemeral=getattr(self, "ephemeral", False))

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"position {self.position}"
        return f"<{type(self).__name__} {self.id!r} of {self.model!r}, {state}>"

    def _repr_html_(self) -> str:
        """The same as notebooks show it."""
        rows = {"model": f"{self.model}, version {self.version}", "position": self.position}
        rows |= {"durable position": self.durable_position, "closed": "yes" if self.closed else "no"}
        return html.facts(f"Session {self.id}", rows)

    @property
    def position(self) -> int:
        """The steps and marks applied whose answers this client has."""
        return self._last[0] if self._last is not None else int(self._core.table.answered[self._handle])

    @property
    def origin(self) -> int:
        """The position behind the last reset, where the present history began; 0 where there was none."""
        return self._last[2] if self._last is not None else int(self._core.table.origin[self._handle])

    @property
    def cursor(self) -> bytes | None:
        """The cursor of the last chunk, or mark, whose answer this client has; None where none ever came.

        Of a session that was resumed it is the one that the server had: where to read on.
        """
        if self._last is not None:
            return self._last[3] or None
        return self._core.table.cursors.get(self._handle)

    @property
    def durable_position(self) -> int:
        """The steps that survive a crash of the server, as far as this client knows."""
        if self._last is not None:
            return self._last[1]
        return int(self._core.table.durable_of(self._handles)[0])

    @property
    def replies(self) -> list[tuple[int, Any]]:
        """The outputs that no caller has acknowledged, of a session opened with `return_replies`.

        One item for every chunk, in order: the position at which it started, and its outputs [T, O] (a dict by
        name where the model has several). They end at the position at which the session was opened. The first may begin
        with steps whose outputs the earlier caller got: compare positions, step by step.

        A caller that crashes has steps applied whose outputs it never saw. The server keeps those that
        were not acknowledged, at most 256 chunks, and this brings them. Asking acknowledges them: until then the
        server keeps them, and they count against those 256.
        """
        with self._turn:
            if self._replies and not self.closed:
                self._doer.do(partial(self._core.results.received, self._handles))
        return list(self._replies)

    def _let_go(self, *, delete: bool) -> None:
        """Closes this object, or deletes its session, without waiting for anything."""
        with self._turn:
            if self._last is None:
                self._last = self._stand()
                with contextlib.suppress(StatestreamError):
                    self._doer.do(partial(self._core.close, self._handles, delete=delete))

    def _stand(self) -> tuple[int, int, int, bytes]:
        return self.position, self.durable_position, self.origin, self.cursor or b""

    def _check(self) -> None:
        if self._last is not None:
            raise Closed(f"session {self.id!r} is closed; open it again with client.session")

    @property
    def _handles(self) -> Ints:
        return np.array([self._handle])


class PoolBase(Open[tuple[Ints, Ints, Ints, list["bytes | None"]]], Generic[L]):
    """Many sessions of one model, in rows.

    Attributes:
        model: The model's name.
        version: The version to which all are pinned.
        ids: [N] their ids.
        ephemeral: Whether they are deleted when the pool is closed.
    """

    def __init__(
        self,
        opened: Opened[L],
        ids: Sequence[str],
        *,
        ephemeral: bool,
    ) -> None:
        parts, layout, ticket = opened.parts, opened.layout, opened.ticket
        self._openings = opened.openings
        self._parts = parts
        super().__init__()
        self._division = Division(parts) if len(parts) > 1 else None
        self._layout = layout
        # What the layout makes chunks for: handles, or, of several shards, the rows that are to be divided among them.
        self._handles = np.arange(len(ids)) if self._division else parts[0].handles
        self._replies = {
            row: [(position, answered(outputs)) for position, outputs in replies]
            for row, replies in sorted(ticket.replies.items())
        }
        self.model = layout.model.name
        self.version = layout.model.version
        self.ids = list(ids)
        self.ephemeral = ephemeral

    def __del__(self) -> None:
        """The same as of a session."""
        if getattr(self, "_last", self) is None and self._parts:
            _left_behind(self._parts[0].link, self._openings, ephemeral=getattr(self, "ephemeral", False))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} sessions of {self.model!r}{', closed' if self.closed else ''}>"

    def _repr_html_(self) -> str:
        """The same as notebooks show it, with the first of its sessions."""
        most, closed = html.MOST_ROWS, ", closed" if self.closed else ""
        rows = list(zip(self.ids[:most], self.positions[:most], self.durable_positions[:most], strict=True))
        title = f"Pool of {len(self):,} sessions of {self.model}, version {self.version}{closed}"
        return html.table(title, ("id", "position", "durable position"), rows, len(self))

    @property
    def positions(self) -> Ints:
        """[N] the steps and marks applied whose answers this client has."""
        if self._last is not None:
            return self._last[0]
        return gathered(self._parts, lambda part: part.link.core.table.answered[part.handles])

    @property
    def origins(self) -> Ints:
        """[N] the positions behind the last resets, 0 where there was none."""
        if self._last is not None:
            return self._last[2]
        return gathered(self._parts, lambda part: part.link.core.table.origin[part.handles])

    @property
    def cursors(self) -> list[bytes | None]:
        """[N] what `Session.cursor` is of each session."""
        if self._last is not None:
            return self._last[3]
        found: list[bytes | None] = [None] * len(self.ids)
        for part in self._parts:
            cursors = part.link.core.table.cursors
            for row, handle in zip(part.rows.tolist(), part.handles.tolist(), strict=True):
                found[row] = cursors.get(handle)
        return found

    @property
    def durable_positions(self) -> Ints:
        """[N] the steps that survive a crash of the server, as far as this client knows."""
        if self._last is not None:
            return self._last[1]
        return gathered(self._parts, lambda part: part.link.core.table.durable_of(part.handles))

    @property
    def replies(self) -> dict[int, list[tuple[int, Any]]]:
        """By row, what `Session.replies` has of each session; asking acknowledges all."""
        with self._turn:
            for part in self._parts if self._replies and not self.closed else ():
                part.link.do(partial(part.link.core.results.received, part.handles))
        return {row: list(replies) for row, replies in self._replies.items()}

    def _stand(self) -> tuple[Ints, Ints, Ints, list[bytes | None]]:
        return self.positions, self.durable_positions, self.origins, self.cursors

    def _check(self) -> None:
        if self._last is not None:
            raise Closed("the pool is closed; open another with client.sessions")

    def _ticket(self, step: PoolStep, feed: Feed | None = None) -> tuple[PoolTicket, bool, Callable[[Any], Any] | None]:
        """A step, whether it is one for each row, and what makes a table of its outputs where it came as one."""
        told = None
        if says_whose(step.x):
            count = len(self.ids)
            rows = np.arange(count) if step.rows is None else chosen(step.rows, self.ids) % count
            read = read_steps(self._layout, step.x, self.ids, rows.tolist(), step.lengths, step.cursors)
            step, told = PoolStep(read.x, read.rows, read.lengths, read.cursors, step.score), read.told
        handles = self._live(step.rows)
        cursors = check_cursors(step.cursors, len(handles))
        score = check_flag("score", step.score)
        return *self._layout.pool(handles, step.x, step.lengths, feed, cursors, score), told

    def _mark(
        self,
        kind: int,
        rows: Rows | None,
        cursors: Sequence[bytes | None] | None,
    ) -> PoolTicket:
        handles = self._live(rows)
        said = check_cursors(cursors, len(handles))
        if kind == MARK_CURSOR and not (said and all(said)):
            raise ValueError("a mark has no cursor; expected one for each row that is named")
        return self._layout.pool_mark(handles, kind, said)

    def _id_of(self, ticket: PoolTicket, row: int) -> str:
        """The id of a row of a step."""
        return self.ids[int(np.flatnonzero(self._handles == ticket.handles[row])[0])]

    def _shares(self, ticket: PoolTicket) -> list[Share[L]]:
        """What each shard has of a step; of one shard that is the step itself."""
        if self._division is None:
            return [Share(self._parts[0].link, np.arange(0), ticket)]
        return self._division.split(ticket)

    def _live(self, rows: Rows | None = None) -> Ints:
        if self._last is not None:
            self._check()
        if rows is None:
            return self._handles
        handles: Ints = self._handles[chosen(rows, self.ids)]
        if len(np.unique(handles)) != len(handles):
            raise ValueError("rows has an entry twice; expected each row at most once")
        return handles


def _left_behind(link: Doer, openings: Openings[Any], *, ephemeral: bool) -> None:
    if ephemeral:
        link.soon(openings.let_go, at_once=False)
    else:
        link.soon(openings.disown, at_once=True)


def named_ids(count: int | None, ids: Sequence[str] | None) -> tuple[list[str], bool]:
    """The ids of sessions to open, and whether they are anonymous."""
    return session_ids(count, ids), ids is None
