# Generated from statestream/aio/session.py by `make twins`; change that one.
"""One session of a synchronous client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from statestream import causes, unary
from statestream.arguments import check_cursor, check_id, check_items, check_whole, lookahead
from statestream.base import LOOKAHEAD, SessionBase
from statestream.calls import check_control
from statestream.contract.errors import NotOwner, SessionMoved
from statestream.core import Ticket
from statestream.layout import Input
from statestream.parts import Opened
from statestream.sync.calling import answer, answers
from statestream.sync.link import Link
from statestream.sync.pipeline import pipeline
from statestream.sync.stepping import Stepping
from statestream.sync.together import perform
from statestream.sync.waiting import LIVE, Attempt, Done
from statestream.v1.inference_pb2 import MARK_CURSOR, MARK_RESET

if TYPE_CHECKING:
    from types import TracebackType

    from statestream.sync.client import Client

Remedy: TypeAlias = Callable[[NotOwner], None]
"""What helps a call that reached another server than the one that has its session."""


class Session(SessionBase):
    """One live session. Made by `client.session`; methods may be called from any thread.

    As a context manager: leaving detaches a named session, which stays on the server, and deletes
    one that was opened without an id. Steps of one session are applied in the order of the calls.

    A caller that acts on outputs and can crash together with the server reads its inputs again from
    `durable_position`, or calls `flush()` before it acts. One that crashes alone finds the outputs it
    never saw in `replies`.
    """

    def __init__(
        self,
        client: Client,
        opened: Opened[Link],
        session_id: str,
        *,
        ephemeral: bool,
        made: bool = False,
    ) -> None:
        super().__init__(opened, session_id, ephemeral=ephemeral, made=made)
        self._client = client
        self._link = opened.parts[0].link

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.closed:
            self.close()

    def step(self, x: Input, *, cursor: bytes | None = None) -> Any:
        """Applies one step, or several, and returns their outputs.

        A connection that breaks, or a server that restarts, is not seen here: the chunk is sent again and applied once.
        On Ctrl-C, a chunk that is not on its way yet, and has none behind it, is dropped; any other is applied all
        the same.

        Args:
            x: One step of the model's input shape [F], or T steps [T, F]; a dict by name where the
                model has several inputs. Numbers are converted to the model's dtype, float64 to
                float32 too. More steps than the server takes at once are cut and joined again.
            cursor: Where the caller is behind these steps in what it reads, in its own words: at most 256 bytes, kept
                with the session and there again as `cursor` when it is resumed. Without one the last stays.

        Returns:
            y: [O] or [T, O]; a dict by name where the model has several outputs.

        Raises:
            BadTensor: Wrong name, dtype or shape; nothing was sent.
            NonFiniteState: The chunk was refused; the session stays where it was.
            SessionMoved: Another client opened the session.
            StateLost: The server lost steps that this client cannot replay.
            ServerUnavailable: No server for `retry_timeout`; compare `position` before sending again.
        """
        ticket, done = self._send(x, cursor=check_cursor(cursor) if cursor is not None else b"")
        try:
            done.wait()
        except BaseException:
            self._link.forget(ticket)
            raise
        if ticket.error is not None:
            raise causes.of_step(self._layout, ticket, self.id)
        return ticket.value

    def stream(self, items: Iterable[Input], *, ahead: int | None = None) -> Iterator[Any]:
        """Steps through items and yields each one's outputs, in order, with several under way at a time.

        The first error ends it, in its turn; steps behind a refused one are not applied. When left early, steps that
        are on their way are applied all the same: `position` tells.

        Args:
            items: What `step` takes.
            ahead: How many items are sent before the first output is waited for. By default 32 for lists and
                arrays, and 1 for other iterables: these may wait for the world, and an output
                should not wait with them.
        """
        check_items(items, LIVE)
        most = lookahead(items, ahead, LOOKAHEAD, LIVE)
        before: Ticket | None = None

        def send(x: Input) -> Stepping:
            nonlocal before
            ticket, done = self._send(x, before)
            before = ticket
            return Stepping(self._link, self._layout, self.id, ticket, done)

        return pipeline(self._layout.items(items), send, most)

    def flush(self) -> int:
        """Makes all steps so far durable; returns the durable position.

        Raises:
            StoreUnavailable: The server's store cannot be written.
        """
        ticket = perform(self._link, lambda: self._core.flush(self._handles), self._submit)
        check_control(ticket.errors)
        return self.durable_position

    def reset(self, cursor: bytes | None = None) -> None:
        """Starts anew from the state's start values; position and cursor go on, `origin` tells where it began.

        It takes its turn among the steps of this session, and takes one position as if it were one: what is behind it
        does not wait for its answer, and is refused with it. A session that has failed is opened again as it is on the
        server first, and is usable again.

        On Ctrl-C, it is dropped where it is not on its way yet and has nothing behind it.

        Args:
            cursor: As for `step`.

        Raises:
            StatestreamError: It was refused; `reset` may be called again.
            ServerUnavailable: No server for `retry_timeout`; it may or may not have happened.
        """
        self._mark(MARK_RESET, check_cursor(cursor))

    def mark(self, cursor: bytes) -> None:
        """Keeps a cursor without a step: for what was read and is no input, say. It takes one position, as a step does.

        Args:
            cursor: As for `step`.
        """
        if not check_cursor(cursor):
            raise ValueError("cursor is empty; expected 1 to 256 bytes")
        self._mark(MARK_CURSOR, cursor)

    def _mark(self, kind: int, cursor: bytes) -> None:
        ticket = self._layout.mark(self._handle, kind, cursor)
        with self._turn:
            if self._last is not None:
                self._check()
            done = self._link.begin(ticket)
        try:
            done.wait()
        except BaseException:
            self._link.forget(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error

    def forecast(self, h: int) -> Iterator[Any]:
        """Forecasts h steps on a copy; the session itself does not move.

        It starts from where the session stands when the first row is asked for.

        Yields:
            One row [O] a step, as the server makes them; a dict by name where there are several outputs.

        Raises:
            Unsupported: The model's signature names no feedback.
        """
        check_whole("h", h)
        call = unary.forecast(self._layout, self.version, h, self.id)
        return answers(self._link, call, partial(self._attempts, call.request))

    def fork(self, id: str | None = None) -> Session:
        """Copies the session as it stands; without an id the copy is deleted when it is closed.

        Raises:
            SessionExists: The id is taken by something else.
        """
        if id is not None:
            check_id(id)
        # A named copy is opened where its id belongs, as by any other client; an anonymous one stays beside this.
        fork_id = id if id is not None else self._client._shards.beside(self.model, self._link)
        call = unary.fork(self.model, self.id, fork_id, ephemeral=id is None)
        answer(self._link, call, partial(self._attempts, call.request))
        return self._client._adopt(self.model, fork_id, ephemeral=id is None, anew=False)

    def snapshot(self) -> bytes:
        """The session as bytes (a safetensors file) that `client.restore` takes."""
        call = unary.snapshot(self.model, self.id)
        return answer(self._link, call, partial(self._attempts, call.request))

    def delete(self) -> None:
        """Deletes the session on the server and closes this object."""
        self._close(delete=True)

    def close(self) -> None:
        """Lets the session go once its steps are answered: a named one stays, an anonymous one is deleted.

        What is called on it meanwhile raises Closed, but for another `close`, which returns at once.

        On Ctrl-C, it happens all the same.
        """
        if not self.closed and not self._link.copied:
            self._close(delete=False)

    def _send(self, x: Input, before: Ticket | None = None, cursor: bytes = b"") -> tuple[Ticket, Done]:
        ticket = self._layout.chunk(self._handle, x, self._core.log.max_steps, self._core.log.max_answer, cursor)
        with self._turn:
            if self._last is not None:
                self._check()
            return ticket, self._link.begin(ticket, before)

    def _attempts(self, request: Any) -> Attempt:
        """The tries of a call about the session: each once its steps are answered, and after a remedy, if need be.

        The request names the epoch under which the session is open here: nobody else's history is what is meant.
        """
        return partial(self._attempt, request, self._link.attempts(), iter(self._remedies()))

    @contextlib.contextmanager
    def _attempt(self, request: Any, attempt: Attempt, remedies: Iterator[Remedy]) -> Iterator[grpc.Channel]:
        self._settle()
        request.epoch = self._core.table.epoch.item(self._handle)
        try:
            with attempt() as channel:
                yield channel
        except NotOwner as elsewhere:
            remedy = next(remedies, None)
            if remedy is None:
                raise
            remedy(elsewhere)
        except SessionMoved:
            self._settle()  # Tells where the session failed. Where it was opened again, the call is made again.
            if request.epoch == self._core.table.epoch.item(self._handle):
                raise

    def _remedies(self) -> tuple[Remedy, ...]:
        """First this, then that.

        Someone else may have opened the session elsewhere: it is claimed back. Or a proxy divides its work anew, and
        calls go elsewhere than the stream does: another stream follows them.
        """
        stream = self._link.state.streams

        def follow(_elsewhere: NotOwner) -> None:
            self._link.renew(stream)

        return self._claim, follow

    def _claim(self, elsewhere: NotOwner) -> None:
        """Opens the session again on the stream, which moves it to the server that the stream goes to."""
        self._link.do(lambda: self._core.left(self._handle, elsewhere, time.monotonic()))

    def _settle(self) -> None:
        """Waits until everything submitted before is answered."""
        ticket = perform(self._link, lambda: self._core.settle(self._handles), self._submit)
        check_control(ticket.errors)

    def _close(self, *, delete: bool) -> None:
        ticket = perform(self._link, lambda: self._core.close(self._handles, delete=delete), self._end)
        check_control(ticket.errors)
