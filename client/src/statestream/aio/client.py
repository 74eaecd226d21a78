"""The asyncio client: what can be asked of a server."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from statestream import arguments, calls, starts, unary
from statestream.aio.awaiting import hinting
from statestream.aio.calling import answer
from statestream.aio.classifying import Classifying
from statestream.aio.feeding import Feeding
from statestream.aio.link import Link
from statestream.aio.opening import Opening, opening
from statestream.aio.pipeline import counted
from statestream.aio.pool import Pool
from statestream.aio.session import Session
from statestream.aio.together import abandon_all, close_all, leave_all, perform_all
from statestream.aio.waiting import LIVE, Lock, apart
from statestream.arguments import Mode
from statestream.base import FEED_LOOKAHEAD, named_ids
from statestream.contract.errors import StatestreamError
from statestream.contract.tensors import Array
from statestream.layout import Input
from statestream.owned import Owned
from statestream.parts import Opened, Openings, opened
from statestream.progress import Progress, check_progress
from statestream.settings import Settings
from statestream.shards import Shards, make_core, routes
from statestream.unary import UnaryCall

if TYPE_CHECKING:
    from types import TracebackType

H = TypeVar("H")


@hinting  # asyncio only
class Client(Classifying):
    """A connection to a server, and the sessions on it. Made by `connect`, for the loop that runs then.

    Attributes:
        settings: How it connects, waits and keeps what it may have to send again.
        server: The server that `local` started for it, and that goes with it; None where it runs elsewhere.
    """

    def __init__(self, address: str, settings: Settings, on_reconnect: Callable[[str], None] | None = None) -> None:
        links = [Link(route, settings, make_core(settings), on_reconnect) for route in routes(address, settings)]
        self._shards = Shards(links)
        super().__init__(self._shards.first)
        self._closing = Lock()
        self._closed = False
        self._address = address
        self.settings = settings
        self.server: Owned | None = None
        self._abandoning = weakref.finalize(self, abandon_all, links)
        self._abandoning.atexit = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets every session go and disconnects; takes at most about two seconds."""
        async with self._closing:
            if self._closed:
                return
            try:
                await leave_all(self._shards.links)
            finally:
                self._closed = True
                try:
                    await close_all(self._shards.links)
                finally:
                    if self.server is not None:
                        await apart(self.server.close)

    def __repr__(self) -> str:
        return f"<Client of {self._address}{', closed' if self._closed else ''}>"

    def session(
        self,
        model: str,
        id: str | None = None,
        *,
        mode: Mode = "either",
        version: int | str | None = None,
        upgrade: int | str | bool | None = None,
        initial_state: Mapping[str, Input] | None = None,
        history: Input | None = None,
        return_replies: bool = False,
    ) -> Opening[Session]:
        """Opens a session, by `await` or `async with`.

        By id it is resumed where it exists; without an id it is new and ends with the caller.

        Args:
            model: The model's name.
            id: 1 to 256 bytes, unique within the model.
            mode: "either", "create" (it must not exist), "resume" (it must) or "replace" (it starts anew).
            version: The model's version; the session's own or the default one where left out. An alias, as "stable",
                is that of a new session; one that exists goes on with its own.
            upgrade: The version, or an alias of it, to move the session to (True for the newest) where it is pinned to
                another: state, position and unacknowledged outputs go along. A new session starts there.
            initial_state: Start values by the name of the state's input, for a session that is new; a state that is not
                named starts as the model says. A constant of the session is set so, once: a reset keeps it.
            history: Past steps [T, F] to warm up a session that is new; their outputs are dropped. Where they are
                refused there is no session.
            return_replies: Bring the outputs that no caller acknowledged: see `Session.replies`.

        Raises:
            ModelNotFound: No such model or version.
            SessionExists: Mode "create", and the id is taken.
            AlreadyOpen: A ValueError: this client has it open, and mode "replace", start values or another version
                would change it; else whoever opens it again shares it, and the last who closes it lets it go.
            SessionNotFound: Mode "resume", and there is no such session.
            ModelChanged: The session is pinned to another version than `version`, or its state does not fit that of
                `upgrade`; it stays as it was.
        """
        arguments.check_opening(model, mode, version, upgrade, initial_state, return_replies)
        (name,), anonymous = named_ids(1, None if id is None else [id])
        return self._session(
            model, name, mode, version, upgrade, initial_state, history, ephemeral=anonymous, replies=return_replies
        )

    def sessions(
        self,
        model: str,
        n: int | None = None,
        *,
        ids: Sequence[str] | None = None,
        mode: Mode = "either",
        version: int | str | None = None,
        upgrade: int | str | bool | None = None,
        initial_state: Mapping[str, Input] | None = None,
        return_replies: bool = False,
    ) -> Opening[Pool]:
        """Opens many sessions as the rows of a pool, by `await` or `async with`.

        Args:
            model: The model's name.
            n: How many; may be left out where `ids` says it.
            ids: Their ids; without them the sessions are new and end with the caller.
            mode: As for `session`.
            version: As for `session`.
            upgrade: As for `session`; of sessions that are pinned to several versions it makes a pool of one.
            initial_state: Start values by the name of the state's input, for all or [N, …], as for `session`.
            return_replies: Bring the outputs that no caller acknowledged: see `Pool.replies`.

        Raises:
            PoolError: Some sessions did not open; the others were let go again.
        """
        arguments.check_opening(model, mode, version, upgrade, initial_state, return_replies)
        names, anonymous = named_ids(n, ids)
        return self._pool(
            model, names, mode, version, upgrade, initial_state, ephemeral=anonymous, replies=return_replies
        )

    def restore(
        self,
        snapshot: bytes,
        *,
        model: str,
        id: str | None = None,
        version: int | str | None = None,
        upgrade: int | str | bool | None = None,
    ) -> Opening[Session]:
        """Makes a session from a snapshot, by `await` or `async with`; one that exists under the id is replaced.

        Args:
            snapshot: What `Session.snapshot` gave.
            model: The model's name.
            id: The session's id; without one it ends with the caller.
            version: The version, or an alias of it; the one it was taken of where left out.
            upgrade: The version, or an alias of it, to restore it in although it was taken of another; True for the
                newest.

        Raises:
            SnapshotInvalid: The bytes are damaged or no snapshot.
            ModelChanged: It is of another version, or its state does not fit that of `upgrade`.
        """
        arguments.check_model(model, version)
        (name,), anonymous = named_ids(1, None if id is None else [id])
        return self._restore(model, name, unary.restore(model, name, snapshot, version, upgrade), ephemeral=anonymous)

    def feed(
        self,
        model: str,
        messages: Iterable[tuple[str, Input]] | AsyncIterable[tuple[str, Input]],
        *,
        ahead: int | None = None,
        max_sessions: int = 1000,
        mode: Mode = "either",
        version: int | str | None = None,
        return_errors: bool = False,
        score: bool = False,
        progress: Progress = False,
    ) -> AsyncIterator[tuple[str, Any]]:
        """Steps the sessions that messages are for, and yields (id, outputs) as they are answered.

        Sessions are opened as their ids come, and the one that was used least lately is let go for another. Those of
        one id are applied in their order, each once, over broken connections and restarts of the server, too. Left
        early, steps that are on their way are applied all the same. All sessions are let go at the end.

        Args:
            model: The model's name.
            messages: Pairs of a session's id and what `Session.step` takes; an iterable or an asynchronous one.
            ahead: How many messages are under way at most. By default 256 for lists, arrays and
                asynchronous iterables, and 1 for other iterables: these may wait for the world.
            max_sessions: How many sessions are open at most; no more messages than that are under way.
            mode: As for `session`, when an id comes for the first time.
            version: As for `session`.
            return_errors: A message that is refused yields its error, in the place of outputs, and the feed goes on. A
                session that failed is opened again for its next message; one that another client took is left to it.
            score: As for `Session.step`.
            progress: Tells how many messages are answered: see `forecast`.

        Raises:
            TypeError: A message is no such pair; raised when those before it are answered.
            ModelNotFound: No such model or version.
            StatestreamError: A message was refused; not with `return_errors`.
        """
        arguments.check_model(model, version)
        arguments.check_messages(messages, LIVE)
        arguments.open_mode(mode)
        most = arguments.lookahead(messages, ahead, FEED_LOOKAHEAD, LIVE)
        sessions = arguments.check_whole("max_sessions", max_sessions)
        arguments.check_flag("return_errors", return_errors)
        arguments.check_flag("score", score)
        check_progress(progress)
        feeding = Feeding(self, model, version, mode, most, sessions, return_errors=return_errors, score=score)
        return counted(feeding.run(messages), progress, f"feed {model}", messages, "messages")

    def _of(self, opened: Opened[Link], id: str) -> Session:
        """The session of an id that was opened alone."""
        return Session(self, opened, id, ephemeral=False)

    @opening("session")  # asyncio only
    async def _session(
        self,
        model: str,
        id: str,
        mode: str,
        version: int | str | None,
        upgrade: int | str | bool | None,
        initial_state: Mapping[str, Input] | None,
        history: Input | None,
        *,
        ephemeral: bool,
        replies: bool,
    ) -> Session:
        if history is not None and mode == "replace":
            # What cannot be read is to cost no session that stands.
            known = await self._layout(model, arguments.wanted_version(version, upgrade)[0], "session")
            known.chunk(0, history, 1)
        session = await self._one(
            model, id, mode, version, upgrade, initial_state, ephemeral=ephemeral, replies=replies
        )
        try:
            if history is not None and session.created:
                await session.step(history)
        except BaseException as failure:
            # The next try would find a session that exists, and leave it as it is: without its past.
            if isinstance(failure, StatestreamError):
                with contextlib.suppress(StatestreamError):
                    await session.delete()
            session._let_go(delete=True)
            raise
        return session

    @opening("pool")  # asyncio only
    async def _pool(
        self,
        model: str,
        ids: Sequence[str],
        mode: str,
        version: int | str | None,
        upgrade: int | str | bool | None,
        initial_state: Mapping[str, Input] | None,
        *,
        ephemeral: bool,
        replies: bool,
    ) -> Pool:
        def hold(opened: Opened[Link]) -> Pool:
            return Pool(self, opened, ids, ephemeral=ephemeral)

        return await self._open(
            model, ids, mode, version, upgrade, initial_state, hold, ephemeral=ephemeral, replies=replies
        )

    @opening("session")  # asyncio only
    async def _restore(self, model: str, id: str, call: UnaryCall[int], *, ephemeral: bool) -> Session:
        await answer(self._shards.of(model, id), call)
        return await self._adopt(model, id, ephemeral=ephemeral, anew=True)

    async def _open(
        self,
        model: str,
        ids: Sequence[str],
        mode: str,
        version: int | str | None,
        upgrade: int | str | bool | None,
        initial_state: Mapping[str, Input] | None,
        hold: Callable[[Opened[Link]], H],
        *,
        ephemeral: bool,
        replies: bool = False,
        anew: bool = False,
    ) -> H:
        """Opens sessions, and has `hold` make the object that has them; they are let go where that does not come."""
        wire_mode = arguments.open_mode(mode)
        version, moves = arguments.wanted_version(version, upgrade)
        initial: Mapping[str, Array] = {}
        if initial_state is not None:
            layout = await self._layout(model, version, "session")
            initial = starts.initial_states(layout.signature, initial_state, len(ids))
        group = calls.group(model, version, ephemeral=ephemeral)
        asked = self._shards.divide(model, ids)
        openings = Openings(asked, group, ids, wire_mode, initial, replies=replies, upgrade=moves, anew=anew)
        try:
            ticket, parts = opened(len(ids), asked, await perform_all(openings.links, openings.take()))
            layout = await self._layout(model, calls.check_opened(ticket, ids) or version, "session")
            return hold(Opened(layout, ticket, parts, openings))
        except BaseException:
            openings.let_go()
            raise

    async def _one(
        self,
        model: str,
        id: str,
        mode: str,
        version: int | str | None,
        upgrade: int | str | bool | None,
        initial_state: Mapping[str, Input] | None,
        *,
        ephemeral: bool,
        replies: bool = False,
        made: bool = False,
        anew: bool = False,
    ) -> Session:
        def hold(opened: Opened[Link]) -> Session:
            return Session(self, opened, id, ephemeral=ephemeral, made=made)

        return await self._open(
            model, [id], mode, version, upgrade, initial_state, hold, ephemeral=ephemeral, replies=replies, anew=anew
        )

    async def _adopt(self, model: str, id: str, *, ephemeral: bool, anew: bool) -> Session:
        """Opens a session that was made by a call; with `anew` in the place of one that was there."""
        return await self._one(model, id, "resume", None, None, None, ephemeral=ephemeral, made=True, anew=anew)
