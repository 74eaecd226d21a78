# Generated from statestream/aio/feeding.py by `make twins`; change that one.
"""Messages for many sessions, each with its session's id: what `Client.feed` is made of."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from statestream import calls
from statestream.arguments import Mode, feed_message, open_mode
from statestream.asked import Asked
from statestream.contract.errors import BadTensor, Closed, NonFiniteState, SessionMoved, StatestreamError
from statestream.core import OpenTicket
from statestream.layout import Input
from statestream.parts import Opened, Openings, opened
from statestream.sync.link import Link
from statestream.sync.stepping import Stepping
from statestream.sync.waiting import Done, Race

if TYPE_CHECKING:
    from statestream.sync.client import Client
    from statestream.sync.session import Session

STAYS = (BadTensor, NonFiniteState)
"""After these a session is where it was, and goes on."""


class Kept:
    """A session of a feed: its messages that have no answer yet, and what the first of them waits for."""

    __slots__ = ("asked", "id", "messages", "openings", "session", "stepping")

    def __init__(self, id: str) -> None:
        self.id = id
        self.messages: deque[Input] = deque()
        self.openings: Openings[Link] | None = None
        self.asked: Asked[OpenTicket, Done] | None = None
        self.session: Session | None = None
        self.stepping: Stepping | None = None

    def leave(self) -> None:
        """Lets the session go without waiting for anything."""
        with contextlib.suppress(StatestreamError):
            if self.stepping is not None:
                self.stepping.forget()
            if self.asked is not None and self.openings is not None:
                self.openings.let_go()
            if self.session is not None:
                self.session._let_go(delete=False)
        self.session = None


class Feeding:
    """A run of a feed.

    Of one session a message is sent when the one before it is answered: so a refused one takes none with it. No more
    messages than sessions may be open are under way, so there is always one that can be let go for another.

    Args:
        client: Whose it is.
        model: The model's name.
        version: Its version, an alias of one, or None for the session's own or the default one.
        mode: How each session is opened, the first time.
        most: How many messages may be under way.
        sessions: How many sessions may be open.
        return_errors: An error is the answer to its message, and does not end the feed.
        score: Whether steps are to be scored.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        version: int | str | None,
        mode: Mode,
        most: int,
        sessions: int,
        *,
        return_errors: bool,
        score: bool,
    ) -> None:
        self._client = client
        self._model = model
        self._version = version
        self._mode = open_mode(mode)
        self._again = open_mode("either" if mode == "either" else "resume")
        self._seen = set[str]()
        self._gone = dict[str, StatestreamError]()
        self._most = min(most, sessions)
        self._sessions = sessions
        self._return_errors = return_errors
        self._score = score
        self._kept = dict[str, Kept]()
        self._race = Race[Kept | None]()
        self._answers: deque[tuple[str, Any]] = deque()
        self._under_way = 0
        self._failure: Exception | None = None

    def run(self, messages: Iterable[tuple[str, Input]]) -> Iterator[Any]:
        """Sends messages, and yields (id, answer) as they are answered."""
        return self._plain(iter(messages))

    def _plain(self, source: Iterator[Any]) -> Iterator[Any]:
        try:
            self._client._layout(self._model, self._version, "session")
            more = True
            while more or self._under_way or self._answers:
                while more and self._room:
                    try:
                        self._take(next(source))
                    except StopIteration:
                        more = False
                    except Exception as error:
                        self._failure = error
                more = more and self._failure is None
                if self._under_way and not self._answers:
                    for kept in self._race.next():
                        self._ended(kept)
                while self._answers:
                    yield self._answers.popleft()
                if self._failure is not None and (not self._under_way or self._ends):
                    raise self._failure
        finally:
            self._leave()

    @property
    def _room(self) -> bool:
        return self._under_way < self._most and not self._answers and self._failure is None

    @property
    def _ends(self) -> bool:
        """Whether what failed is a session's, whose error ends the feed at once."""
        return isinstance(self._failure, StatestreamError)

    def _take(self, message: object) -> None:
        """Takes a message, and sends it where none of its session is before it."""
        id, x = feed_message(message)
        kept = self._kept.pop(id, None)
        if kept is None:
            if len(self._kept) >= self._sessions:
                idle = next(kept for kept in self._kept.values() if not kept.messages)
                self._kept.pop(idle.id).leave()
            kept = Kept(id)
        self._kept[id] = kept  # The last is the one that was used last.
        self._under_way += 1
        kept.messages.append(x)
        if len(kept.messages) == 1:
            self._send(kept)

    def _send(self, kept: Kept) -> None:
        """Has the first message of a session go its way; opens the session first."""
        while kept.messages and not self._ends:
            if kept.id in self._gone:
                self._answer(kept, self._gone[kept.id])
            elif kept.session is None:
                self._open(kept)
                return
            else:
                try:
                    ticket, done = kept.session._send(kept.messages[0], score=self._score)
                except StatestreamError as error:
                    self._answer(kept, error)
                    continue
                session = kept.session
                kept.stepping = Stepping(session._link, session._layout, kept.id, ticket, done, self._score)
                self._race.add(done, kept)
                return

    def _open(self, kept: Kept) -> None:
        asked = self._client._shards.divide(self._model, [kept.id])
        group = calls.group(self._model, self._version, ephemeral=False)
        mode = self._again if kept.id in self._seen else self._mode
        openings = Openings(asked, group, [kept.id], mode, {}, replies=False, upgrade=False)
        (link,), (make,) = openings.links, openings.take()
        kept.openings, kept.asked = openings, Asked(make, link.done())
        self._race.add(kept.asked.done, kept)
        link.do(kept.asked.begin)

    def _ended(self, kept: Kept | None) -> None:
        """What the first message of a session waited for is there."""
        if kept is None:
            return
        try:
            if kept.asked is not None:
                kept.session = self._opened(kept)
                if self._mode != self._again:
                    self._seen.add(kept.id)
            elif kept.stepping is not None:
                stepping, kept.stepping = kept.stepping, None
                self._answer(kept, stepping.answer())
        except StatestreamError as error:
            if isinstance(error, SessionMoved):
                # It is another's; to open it again would take it back.
                self._gone[kept.id] = error
            if not isinstance(error, STAYS):
                kept.leave()
            self._answer(kept, error)
        self._send(kept)

    def _opened(self, kept: Kept) -> Session:
        asked, openings = kept.asked, kept.openings
        assert asked is not None
        assert openings is not None
        try:
            asked.done.wait()
            kept.asked = None
            divided = self._client._shards.divide(self._model, [kept.id])
            ticket, parts = opened(1, divided, [asked.answer()])
            version = calls.check_opened(ticket, [kept.id]) or self._version
            layout = self._client._layout(self._model, version, "session")
            return self._client._of(Opened(layout, ticket, parts, openings), kept.id)
        except BaseException:
            kept.asked = None
            openings.let_go()
            raise

    def _answer(self, kept: Kept, answer: Any) -> None:
        """The first message of a session is answered."""
        kept.messages.popleft()
        self._under_way -= 1
        if isinstance(answer, StatestreamError) and (isinstance(answer, Closed) or not self._return_errors):
            if self._failure is None:
                answer.add_note(f"It is the answer to a message for session {kept.id!r} of {self._model!r}.")
                self._failure = answer
            return
        self._answers.append((kept.id, answer))

    def _leave(self) -> None:
        for kept in self._kept.values():
            kept.leave()
