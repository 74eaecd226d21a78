# Generated from statestream/aio/session.py by `make twins`; change that one.
"""One session of a synchronous client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from statestream import causes, series, unary
from statestream.arguments import check_cursor, check_flag, check_id, check_items, lookahead
from statestream.base import LOOKAHEAD, SessionBase
from statestream.calls import check_control
from statestream.core import Ticket
from statestream.forecasts import Told, Wish, asked, forecast_call, row
from statestream.layout import Input
from statestream.parts import Opened
from statestream.progress import Progress, check_progress
from statestream.scores import scored
from statestream.sync.calling import answer, answers
from statestream.sync.copying import Copying
from statestream.sync.link import Link
from statestream.sync.pipeline import counted, pipeline
from statestream.sync.stepping import Stepping
from statestream.sync.together import perform
from statestream.sync.waiting import LIVE, Done
from statestream.unary import StreamCall
from statestream.v1.inference_pb2 import MARK_CURSOR, MARK_RESET

if TYPE_CHECKING:
    from types import TracebackType

    from statestream.sync.client import Client


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

    def step(self, x: Input, *, cursor: bytes | None = None, score: bool = False) -> Any:
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
            score: Whether to tell how likely x was, as the model expected it after the step before: see `Scores`. What
                is scored is what later scores are compared with; steps that are not leave no trace there.

        Returns:
            y: [O] or [T, O]; a dict by name where the model has several outputs. With `score` the pair of that and
                the `Scores`.

        Raises:
            BadTensor: Wrong name, dtype or shape, and nothing was sent; or a gap that nothing stands in for, a time
                before that of the last step, and the chunk was refused: the session stays where it was.
            Unsupported: It is to be scored, and the model expects nothing; nothing was sent.
            NonFiniteState: The chunk was refused; the session stays where it was.
            SessionMoved: Another client opened the session.
            StateLost: The server lost steps that this client cannot replay.
            ServerUnavailable: No server for `retry_timeout`; compare `position` before sending again.
        """
        if score is not False:
            check_flag("score", score)
        ticket, done = self._send(x, cursor=check_cursor(cursor) if cursor is not None else b"", score=score)
        try:
            done.wait()
        except BaseException:
            self._link.forget(ticket)
            raise
        if ticket.error is not None:
            raise causes.of_step(self._layout, ticket, self.id)
        return scored(ticket.value) if score else ticket.value

    def stream(
        self,
        items: Iterable[Input],
        *,
        ahead: int | None = None,
        score: bool = False,
        progress: Progress = False,
    ) -> Iterator[Any]:
        """Steps through items and yields each one's outputs, in order, with several under way at a time.

        The first error ends it, in its turn; steps behind a refused one are not applied. When left early, steps that
        are on their way are applied all the same: `position` tells.

        Args:
            items: What `step` takes.
            ahead: How many items are sent before the first output is waited for. By default 32 for lists and
                arrays, and 1 for other iterables: these may wait for the world, and an output
                should not wait with them.
            score: As for `step`.
            progress: Tells how many items are answered: see `Client.forecast`.
        """
        check_items(items, LIVE)
        check_progress(progress)
        check_flag("score", score)
        most = lookahead(items, ahead, LOOKAHEAD, LIVE)
        before: Ticket | None = None

        def send(x: Input) -> Stepping:
            nonlocal before
            ticket, done = self._send(x, before, score=score)
            before = ticket
            return Stepping(self._link, self._layout, self.id, ticket, done, score)

        rows = self._layout.items(items)
        return counted(pipeline(rows, send, most), progress, f"stream {self.model}", rows, "items")

    def flush(self) -> int:
        """Makes all steps so far durable; returns the durable position.

        Raises:
            StoreUnavailable: The server's store cannot be written.
        """
        ticket = perform(self._link, lambda: self._core.flush(self._handles), self._submit)
        check_control(ticket.errors, lambda _: self.id)
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
            raise causes.named(ticket.error, self.id)

    def forecast(
        self,
        h: int,
        *,
        quantiles: Sequence[float] | None = None,
        level: Sequence[float] | float | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        future: Any = None,
        samples: bool = False,
        bands: str | None = None,
        past: Any = None,
        until: tuple[str, str, float] | None = None,
    ) -> Iterator[Any]:
        """Forecasts h steps on a copy; the session itself does not move.

        It starts from where the session stands when the first row is asked for. A server that is lost meanwhile is not
        seen here: the forecast goes on elsewhere from where it started.

        Args:
            h: The number of steps.
            quantiles: These and the following are as for `client.forecast`.
            level: In percent.
            num_samples: Paths that are drawn.
            seed: What draws begin with.
            future: [h, F] what is known beforehand; a dict by name for several inputs.
            samples: Whether the paths themselves are wanted.
            bands: "conformal"; then `past` is needed, as the server keeps no inputs.
            past: [T, F] the session's past inputs, that errors are taken from.
            until: When it ends before the horizon.

        Yields:
            One row [O] a step, as the server makes them, with quantiles [O, Q], with samples [S, O]; a dict by name
            where there are several values.

        Raises:
            Unsupported: The model cannot forecast, or says nothing of how sure it is.
            BadTensor: Future or past do not fit the model, are too short, or have a gap.
        """
        wish, inputs = asked(self._layout, h, quantiles, level, num_samples, seed, samples, bands, until, 1, past)
        known = None if future is None else series.future(self._layout, future, 1, h)
        call = forecast_call(self._layout, wish, self.version, sessions=[self.id], past=inputs, future=known)
        return self._rows(wish, call)

    @property
    def _copying(self) -> Copying:
        # Made for each call: if it were kept, a session that nobody has any more would be in a cycle, and not let go.
        return Copying(self._link, self._handles, self._submit)

    def _rows(self, wish: Wish, call: StreamCall[Told]) -> Iterator[Any]:
        for told in answers(self._link, call, partial(self._copying.attempts, call.request)):
            yield row(wish, told, 0)

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
        answer(self._link, call, partial(self._copying.attempts, call.request))
        return self._client._adopt(self.model, fork_id, ephemeral=id is None, anew=False)

    def snapshot(self) -> bytes:
        """The session as bytes (a safetensors file) that `client.restore` takes."""
        call = unary.snapshot(self.model, self.id)
        return answer(self._link, call, partial(self._copying.attempts, call.request))

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

    def _send(
        self, x: Input, before: Ticket | None = None, cursor: bytes = b"", score: bool = False
    ) -> tuple[Ticket, Done]:
        log = self._core.log
        ticket = self._layout.chunk(self._handle, x, log.max_steps, log.max_answer, cursor, score)
        with self._turn:
            if self._last is not None:
                self._check()
            return ticket, self._link.begin(ticket, before)

    def _close(self, *, delete: bool) -> None:
        ticket = perform(self._link, lambda: self._core.close(self._handles, delete=delete), self._end)
        check_control(ticket.errors, lambda _: self.id)
