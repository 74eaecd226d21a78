"""One session of a synchronous client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from statestream import unary
from statestream.arguments import check_cursor, check_id, check_items, check_whole, lookahead
from statestream.base import LOOKAHEAD, SessionBase
from statestream.calls import (
    check_control,
    check_done,
    forecast_request,
    forecast_rows,
)
from statestream.contract.errors import Closed, NotOwner
from statestream.core import Ticket
from statestream.layout import Input
from statestream.parts import Opened
from statestream.sync.asked import Asked, Done
from statestream.sync.link import Link
from statestream.sync.pipeline import pipeline
from statestream.sync.stepping import Stepping
from statestream.unary import UnaryCall
from statestream.v1 import inference_pb2_grpc
from statestream.v1.inference_pb2 import MARK_CURSOR, MARK_RESET

if TYPE_CHECKING:
    from types import TracebackType

    from statestream.sync.client import Client

T = TypeVar("T")


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

        A connection that breaks, or a server that restarts, is not seen here: the chunk is sent
        again and applied once. Ctrl-C stops the waiting; a chunk already sent is applied all the same.

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
        self._link.finish(ticket, done)
        return check_done(self._layout, ticket, self.id)

    def stream(self, items: Iterable[Input], *, ahead: int | None = None) -> Iterator[Any]:
        """Steps through items and yields each one's outputs, in order, with several under way at a time.

        The first error ends it, in its turn; steps behind a refused one are not applied. When left early, steps that
        are on their way are applied all the same: `position` tells.

        Args:
            items: What `step` takes.
            ahead: How many items are sent before the first output is waited for. By default 32 for
                lists and arrays, and 1 for other iterables: these may wait for the world, and an
                output should not wait with them.
        """
        check_items(items, live=False)
        most = lookahead(items, ahead, LOOKAHEAD)
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
        handles = self._live()
        check_control(self._link.perform(lambda: self._core.flush(handles)).errors)
        return self.durable_position

    def reset(self, cursor: bytes | None = None) -> None:
        """Starts anew from the state's start values; position and cursor go on, `origin` tells where it began.

        It takes its turn among the steps of this session, and takes one position as if it were one: what is behind it
        does not wait for its answer, and is refused with it. A session that has failed is opened again as it is on the
        server first, and is usable again.

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
            self._live()
            done = self._link.begin(ticket)
        self._link.finish(ticket, done)
        check_done(self._layout, ticket, self.id)

    def forecast(self, h: int) -> Iterator[Any]:
        """Forecasts h steps on a copy; the session itself does not move.

        It starts from where the session stands when the first row is asked for.

        Yields:
            One row [O] a step, as the server makes them; a dict by name where there are several outputs.

        Raises:
            Unsupported: The model's signature names no feedback.
        """
        check_whole("h", h)
        return self._forecast(forecast_request(self._layout, self.version, h, session_id=self.id))

    def _forecast(self, request: Any) -> Iterator[Any]:
        attempts, done, remedies = self._link.attempts(), 0, iter(self._remedies())
        while True:
            self._settle()
            try:
                with self._link.attempt(attempts) as channel:
                    call = inference_pb2_grpc.InferenceServiceStub(channel).Forecast(
                        request, metadata=self._link.metadata
                    )
                    try:
                        for response in call:
                            for row in forecast_rows(response, done):
                                done += 1
                                yield row
                        return
                    finally:
                        call.cancel()
            except NotOwner as elsewhere:
                remedy = next(remedies, None)
                if remedy is None:
                    raise
                remedy(elsewhere)

    def fork(self, id: str | None = None) -> Session:
        """Copies the session as it stands; without an id the copy is deleted when it is closed.

        Raises:
            SessionExists: The id is taken by something else.
        """
        if id is not None:
            check_id(id)
        # A named copy is opened where its id belongs, as by any other client; an anonymous one stays beside this.
        fork_id = id if id is not None else self._client._shards.beside(self.model, self._link)
        self._owned(unary.fork(self.model, self.id, fork_id, ephemeral=id is None))
        return self._client._adopt(self.model, fork_id, ephemeral=id is None, anew=False)

    def snapshot(self) -> bytes:
        """The session as bytes (a safetensors file) that `client.restore` takes."""
        return self._owned(unary.snapshot(self.model, self.id))

    def delete(self) -> None:
        """Deletes the session on the server and closes this object."""
        self._close(delete=True)

    def close(self) -> None:
        """Lets the session go once its steps are answered: a named one stays, an anonymous one is deleted.

        What is called on it meanwhile raises Closed, but for another `close`, which returns at once.
        """
        if not self.closed and not self._link.copied:
            self._close(delete=False)

    def _send(self, x: Input, before: Ticket | None = None, cursor: bytes = b"") -> tuple[Ticket, Done]:
        ticket = self._layout.chunk(self._handle, x, self._core.chunks.max_steps, self._core.chunks.max_answer, cursor)
        with self._turn:
            if self.closed:
                self._live()
            return ticket, self._link.begin(ticket, before)

    def _owned(self, call: UnaryCall[T]) -> T:
        """Makes a call about the session once its steps are answered; where another server has it, after a remedy."""
        for remedy in self._remedies():
            self._settle()
            try:
                return self._link.unary(call)
            except NotOwner as elsewhere:
                remedy(elsewhere)
        self._settle()
        return self._link.unary(call)

    def _remedies(self) -> tuple[Callable[[NotOwner], None], ...]:
        """What helps a call that reached another server than the one that has the session: first this, then that.

        Someone else may have opened it there: it is claimed back. Or a proxy divides its work anew, and calls go
        elsewhere than the stream does: another stream follows them.
        """
        stream = self._link.stream

        def follow(_elsewhere: NotOwner) -> None:
            self._link.renew(stream)

        return self._claim, follow

    def _claim(self, elsewhere: NotOwner) -> None:
        """Opens the session again on the stream, which moves it to the server that the stream goes to."""
        self._link.do(lambda: self._core.reclaim(self._handle, elsewhere, time.monotonic()))

    def _settle(self) -> None:
        handles = self._live()
        check_control(self._link.perform(lambda: self._core.settle(handles)).errors)

    def _close(self, *, delete: bool) -> None:
        asked = Asked(lambda: self._core.close(np.array([self._handle]), delete=delete))
        try:
            self._end(asked)
            self._link.do(asked.begin)
            ticket = self._link.answer(asked)
        except BaseException:
            # Ctrl-C may come right before it was asked for; a session that counts as closed has to be.
            if self._ending is asked and self.closed:
                with contextlib.suppress(Closed):
                    self._link.do(asked.begin)
            raise
        check_control(ticket.errors)
