"""The connection of an asyncio client: one task that dials and reads, one that writes, on the caller's loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from statestream import forks
from statestream.aio.channels import channel_to
from statestream.aio.status import status_of
from statestream.aio.waiting import Attempt, Done
from statestream.aio.wakeup import Wakeup
from statestream.aio.writing import Writer
from statestream.backoff import FIRST
from statestream.budget import look_after
from statestream.calls import Attempts, read_code, read_rpc_error
from statestream.connection import Connection
from statestream.contract import errors
from statestream.contract.errors import StatestreamError
from statestream.core import PartsTicket, PoolTicket, StepTicket, StreamCore, Ticket
from statestream.settings import Settings
from statestream.shards import Route
from statestream.unary import server_info_request
from statestream.v1 import inference_pb2_grpc, server_pb2_grpc


class Link:
    """The connection of one shard of a client: dials, streams, dials again, until it is closed. Belongs to one loop.

    Attributes:
        state: What becomes of it.
        copied: Whether it is the copy that a forked process has: closed, and silent when it is let go.
    """

    def __init__(
        self,
        route: Route,
        settings: Settings,
        core: StreamCore,
        on_reconnect: Callable[[str], None] | None,
    ) -> None:
        self.settings = settings
        self.core = core
        self.state = Connection(core, route, settings, on_reconnect)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._online = asyncio.Event()
        self._wakeup = Wakeup(self._loop)
        self._writer = Writer(core, self.state, self._wakeup)
        self._over = asyncio.Event()
        self._closed = False
        self._hopeless: StatestreamError | None = None
        self.copied = False
        self._task: asyncio.Task[None] | None = None
        self._began = 0.0
        forks.watch(self)

    # ── for callers ────────────────────────────────────────────────────────────────────────────

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return self.state.metadata

    def start(self) -> None:
        """Begins to connect; `connected` tells when that is done."""
        self._began = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="statestream")

    async def connected(self) -> None:
        """Waits until it is connected.

        Raises:
            ServerUnavailable: No server answered within `connect_timeout`.
        """
        left = max(0.0, self._began + self.settings.connect_timeout - time.monotonic())
        try:
            await asyncio.wait_for(self._online.wait(), left)
        except TimeoutError:
            error = self.state.unavailable(time.monotonic() - self._began)
            await self.close()
            raise error from None
        if self._closed:
            raise self.state.unavailable(time.monotonic() - self._began)

    def done(self) -> Done:
        """What a ticket's caller can wait on."""
        return self._loop.create_future()

    def do(self, operation: Callable[[], object]) -> None:
        """Has the core do something."""
        if self._closed:
            raise self.state.closed(forked=self.copied)
        operation()
        self._wakeup.set()

    def soon(self, operation: Callable[[], object], *, at_once: bool) -> None:
        """Calls a function that has the core do something, on the loop; as a caller's last word, from any thread."""
        if at_once and threading.get_ident() == self._thread:
            operation()
            return
        # Without a loop the client is over, and its sessions with it; a forked process has the loop of another one.
        with contextlib.suppress(RuntimeError):
            if not self.copied:
                self._loop.call_soon_threadsafe(operation)

    def begin(self, ticket: StepTicket | PartsTicket | PoolTicket, before: Ticket | None = None) -> Done:
        """Submits steps, of a stream unless the step before them failed; what comes back is done when they are."""
        if self._closed:
            raise self.state.closed(forked=self.copied)
        if self.state.tracing is not None:
            self.state.tracing.asked()
        ticket.waiter = done = self._loop.create_future()
        self.core.step(ticket, before)
        self._writer.stepped()
        return done

    def forget(self, ticket: Ticket) -> None:
        """Stops caring for an operation."""
        if not self._closed:
            self.core.cancel(ticket)
            self._wakeup.set()

    def attempts(self, attempts: Attempts) -> Attempt:
        """The tries of one idempotent call, as many as `attempts` lets; each on the channel to the server that answers.

        Where the server could not answer, leaving waits and swallows the error: the call is to be made again.

        Raises:
            StatestreamError: The server's error, or ServerUnavailable after `retry_timeout`.
        """
        return partial(self._attempt, attempts)

    @contextlib.asynccontextmanager
    async def _attempt(self, attempts: Attempts) -> AsyncIterator[grpc.aio.Channel]:
        channel = await self._connected()
        try:
            yield channel
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            await self._pause(attempts, error, channel)
        except asyncio.CancelledError:
            # gRPC reports a call whose channel was closed under it the way it reports a cancelled task.
            task = asyncio.current_task()
            if channel is self._channel or (task is not None and task.cancelling()):
                raise
            await self._pause(attempts, grpc.aio.UsageError(), channel)

    async def _connected(self) -> grpc.aio.Channel:
        """The channel to the server that answers now; waits for one."""
        until = self._loop.time() + self.settings.retry_timeout
        while True:
            if not self._online.is_set():
                try:
                    await asyncio.wait_for(self._online.wait(), until - self._loop.time())
                except TimeoutError:
                    raise self.state.unavailable(self.settings.retry_timeout) from None
            if self._closed:
                raise self.state.closed(forked=self.copied)
            if self._channel is not None:
                return self._channel
            # It went in the turn in which this was woken: the server is away again.

    async def _pause(self, attempts: Attempts, error: Exception, channel: grpc.aio.Channel) -> None:
        """Waits before the next try of a call that failed, or raises what it met."""
        if self._closed:
            raise self.state.closed(forked=self.copied) from error
        try:
            delay = self.state.missed(attempts, error, time.monotonic(), current=channel is self._channel)
        finally:
            if self.state.away:
                self._wakeup.set()
        await asyncio.sleep(delay)

    async def renew(self, stream: int) -> None:
        """Ends a stream once it is answered, so that the next one goes where a proxy sends calls now.

        Returns when it has ended, at once where it is not that of this moment, and after `retry_timeout` anyway.
        """
        over = self._over
        if stream != self.state.streams:
            return
        self.state.renewing = True
        self._wakeup.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), self.settings.retry_timeout)

    async def close(self) -> None:
        """Ends the connection; whatever is under way fails with Closed."""
        if self._closed and (self._task is None or self._task.done()):
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def abandon(self) -> None:
        """Ends the connection soon, without a wait: nobody has the client any more."""
        self.soon(self._cancel, at_once=False)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def forked(self) -> None:
        """Closes this copy of it, in the child of a fork."""
        self._closed = self.copied = True
        forks.keep(self._channel, self._call, self._task)
        if self._call is not None:
            # What is cancelled when the child's loop ends would call into gRPC.
            self._call.cancel = lambda: False
        self._task, self._online = None, asyncio.Event()
        self._online.set()

    # ── the link's own tasks ───────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        failure: StatestreamError = errors.Closed("the client was closed")
        try:
            while not self._closed:
                channel = await self._dial()
                while channel is not None and await self._serve(channel):
                    pass
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = errors.InternalError(f"the client's connection task ended: {error!r}")
            failure.__cause__ = error
        finally:
            self._closed = True
            self.core.give_up(self._hopeless or failure)
            self._online.set()
            await self._release_channel()

    async def _dial(self) -> grpc.aio.Channel | None:
        state = self.state
        channel = channel_to(state.address, self.settings, state.receives)
        try:
            timeout = min(5.0, self.settings.connect_timeout)
            call = server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
                server_info_request(), timeout=timeout, metadata=self.metadata
            )
            call.add_done_callback(lambda _: self._wakeup.set())
            await self._pump(timeout + 1.0, stop=call.done)
            longer = state.dialled(await call)
        except (grpc.RpcError, StatestreamError) as error:
            await channel.close()
            cause = error if isinstance(error, StatestreamError) else read_rpc_error(error, state.where)
            delay = state.refused(cause)
            if state.hopeless:
                # Who waits, and who comes later, hears why.
                self._closed, self._hopeless = True, state.closed(forked=False)
            await self._pump(delay)
            return None
        except BaseException:
            await channel.close()
            raise
        if longer:
            # A channel's limit stands from its beginning.
            await channel.close()
            channel = channel_to(state.address, self.settings, state.receives)
        self._channel, self.state.away = channel, False
        return channel

    async def _serve(self, channel: grpc.aio.Channel) -> bool:
        """Has a stream on a channel until it is over; whether the next one is to be on this channel, too."""
        state = self.state
        over = self._over = asyncio.Event()
        state.began(time.monotonic())
        call = self._call = inference_pb2_grpc.InferenceServiceStub(channel).Stream(metadata=state.stream_metadata)
        said: list[grpc.aio.AioRpcError] = []
        call.add_done_callback(lambda call: said.append(status_of(call)))
        writer = asyncio.create_task(self._writer.write(call), name="statestream-writer")
        watcher = asyncio.create_task(self._watch(call), name="statestream-watcher")
        self._online.set()
        try:
            await self._read(call)
        except grpc.RpcError as error:
            state.cause = read_rpc_error(said[0] if said else error, state.where)
        except asyncio.CancelledError:
            # gRPC tells whoever reads of a call that was cancelled the way a task is told that is cancelled.
            task = asyncio.current_task()
            if not state.silent or (task is not None and task.cancelling()):
                raise
        finally:
            call.cancel()
            watcher.cancel()
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            state.ended(closed=self._closed)
            if state.denied is None:
                self._online.clear()
            over.set()
            if state.denied is None:
                await self._release_channel()
        if state.denied is not None:
            return await self._stay()
        if not self._closed:
            await self._pump(state.after(time.monotonic()))
        return False

    async def _read(self, call: Any) -> None:
        """Takes what comes on a stream, until it ends or is to end."""
        state, core = self.state, self.core
        while (response := await call.read()) is not grpc.aio.EOF:
            if state.tracing is not None:
                state.tracing.received(response)
            core.receive(response, now := time.monotonic())
            # Whoever waited for the answer goes on before anything else is done.
            await asyncio.sleep(0)
            core.buffer.advance(now)
            if (core.going_away or not state.answered) and state.over():
                return
            if core.pending:
                self._wakeup.set()
        state.cause = read_code(await call.code(), await call.details() or "the stream ended", state.where)

    async def _stay(self) -> bool:
        """Keeps the channel for calls that need no stream until one is wanted: True; False once the server is away."""
        await asyncio.sleep(FIRST)  # Streams that are refused are not to follow each other as fast as they can.
        while not (self._closed or self.state.away):
            if self.state.wants_stream():
                return True
            self._wakeup.clear()
            await self._wakeup.wait()
        self._online.clear()
        await self._release_channel()
        return False

    async def _watch(self, call: Any) -> None:
        """Tells callers whom the server does not answer, and ends a stream on which nothing comes any more."""
        while True:
            await asyncio.sleep(look_after(self.settings.retry_timeout))
            if self.state.is_useless(time.monotonic()):
                call.cancel()
            self._wakeup.set()

    async def _pump(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Waits for some time without a server, and gives callers up who waited too long."""
        until = time.monotonic() + seconds
        while not self._closed:
            now = time.monotonic()
            self.state.waits(now)
            if now >= until or stop():
                return
            self._wakeup.clear()
            await self._wakeup.rung(min(until, now + 0.25))

    async def _release_channel(self) -> None:
        channel, self._channel = self._channel, None
        if self.copied:
            return
        # A call has its channel, and gRPC disconnects with the last that has it, not when it is closed.
        self._call = None
        if channel is not None:
            await channel.close()
