"""The connection of a synchronous client: two daemon threads that move frames between the core and gRPC.

Callers' threads never touch the core: they put operations on a queue and wait for tickets, so that a
KeyboardInterrupt in the midst of a call leaves the core whole.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc

from statestream import forks
from statestream.backoff import FIRST
from statestream.budget import look_after
from statestream.calls import Attempts, read_code, read_rpc_error
from statestream.connection import Connection
from statestream.contract import errors
from statestream.contract.errors import StatestreamError
from statestream.core import PartsTicket, PoolTicket, StepTicket, StreamCore, Ticket
from statestream.settings import Settings
from statestream.shards import Route
from statestream.sync.channels import channel_to
from statestream.sync.waiting import Attempt, Done
from statestream.unary import server_info_request
from statestream.v1 import inference_pb2_grpc, server_pb2_grpc
from statestream.v1.inference_pb2 import StreamRequest

_links: weakref.WeakSet[Link] = weakref.WeakSet()
"""Those whose threads are to end before the interpreter does."""


@atexit.register
def _close() -> None:
    for link in list(_links):
        link.close()


class Link:
    """The connection of one shard of a client: dials, streams, dials again, until it is closed.

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
        self._operations: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._call: Any = None
        self._stream = 0
        self._over, self._online = threading.Event(), threading.Event()
        self._began = 0.0
        self._closed = self.copied = False
        self._hopeless: StatestreamError | None = None
        self._thread = threading.Thread(target=self._run, name="statestream", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="statestream", daemon=True)
        self._ended_for_good = threading.Event()
        forks.watch(self)

    # ── for callers ────────────────────────────────────────────────────────────────────────────

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return self.state.metadata

    def start(self) -> None:
        """Begins to connect; `wait` tells when that is done."""
        self._began = time.monotonic()
        _links.add(self)
        self._thread.start()
        self._watcher.start()

    def connected(self) -> None:
        """Waits until it is connected.

        Raises:
            ServerUnavailable: No server answered within `connect_timeout`.
        """
        if not self._online.wait(max(0.0, self._began + self.settings.connect_timeout - time.monotonic())):
            error = self.state.unavailable(time.monotonic() - self._began)
            self.close()
            raise error
        if self._closed:
            raise self.state.unavailable(time.monotonic() - self._began)

    def done(self) -> Done:
        """What a ticket's caller can wait on."""
        return Done(self._check)

    def _check(self) -> None:
        if not self._thread.is_alive():
            raise self.state.closed(forked=self.copied)

    def do(self, operation: Callable[[], object]) -> None:
        """Has the core do something soon, in the order of the calls."""
        if self._closed:
            raise self.state.closed(forked=self.copied)
        self._operations.put(operation)

    def soon(self, operation: Callable[[], object], *, at_once: bool) -> None:
        """Calls a function that has the core do something; as a caller's last word, from any thread."""
        operation()

    def begin(self, ticket: StepTicket | PartsTicket | PoolTicket, before: Ticket | None = None) -> Done:
        """Submits steps, of a stream unless the step before them failed; what comes back is done when they are."""
        if self._closed:
            raise self.state.closed(forked=self.copied)
        if self.state.tracing is not None:
            self.state.tracing.asked()
        ticket.waiter = done = Done(self._check)
        self._operations.put(partial(self.core.step, ticket, before))
        return done

    def forget(self, ticket: Ticket) -> None:
        """Stops caring for an operation."""
        if not self._closed:
            self.do(partial(self.core.cancel, ticket))

    def attempts(self, attempts: Attempts) -> Attempt:
        """The tries of one idempotent call, as many as `attempts` lets; each on the channel to the server that answers.

        Where the server could not answer, leaving waits and swallows the error: the call is to be made again.

        Raises:
            StatestreamError: The server's error, or ServerUnavailable after `retry_timeout`.
        """
        return partial(self._attempt, attempts)

    @contextlib.contextmanager
    def _attempt(self, attempts: Attempts) -> Iterator[grpc.Channel]:
        channel = self._connected()
        try:
            yield channel
        except (grpc.RpcError, ValueError) as error:
            self._pause(attempts, error, channel)

    def _connected(self) -> grpc.Channel:
        """The channel to the server that answers now; waits for one."""
        until = time.monotonic() + self.settings.retry_timeout
        while self._online.wait(max(0.0, until - time.monotonic())):
            if self._closed:
                raise self.state.closed(forked=self.copied)
            if (channel := self._channel) is not None:  # Else it went between the two: the server is away again.
                return channel
        raise self.state.unavailable(self.settings.retry_timeout)

    def _pause(self, attempts: Attempts, error: Exception, channel: grpc.Channel) -> None:
        """Waits before the next try of a call that failed, or raises what it met."""
        if self._closed:
            raise self.state.closed(forked=self.copied) from error
        try:
            delay = self.state.missed(attempts, error, time.monotonic(), current=channel is self._channel)
        finally:
            if self.state.away:
                self._operations.put(None)
        time.sleep(delay)

    def renew(self, stream: int) -> None:
        """Ends a stream once it is answered, so that the next one goes where a proxy sends calls now.

        Returns when it has ended, at once where it is not that of this moment, and after `retry_timeout` anyway.
        """
        over = self._over

        def end() -> None:
            if self.state.streams == stream:
                self.state.renewing = True

        if self.state.streams == stream:
            self.do(end)
            over.wait(self.settings.retry_timeout)

    def close(self) -> None:
        """Ends the connection; whatever is under way fails with Closed."""
        if self.copied:
            return
        self._end()
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(1.0)
            if self._watcher.ident is not None:
                self._watcher.join(1.0)

    def abandon(self) -> None:
        """Ends the connection soon, without a wait: nobody has the client any more.

        A finalizer calls it, in the midst of whatever its thread does, and Ctrl-C in a finalizer is lost. So it takes
        no lock, and is short.
        """
        self._operations.put(self._end)

    def _end(self) -> None:
        self._closed = True
        self._ended_for_good.set()
        self._operations.put(None)
        call = self._call
        if call is not None:
            call.cancel()

    def forked(self) -> None:
        """Closes this copy of it, in the child of a fork."""
        self._closed = self.copied = True
        forks.keep(self._channel, self._call)
        self._lock, self._operations = threading.Lock(), queue.SimpleQueue()
        self._over = self._online = threading.Event()
        self._online.set()

    # ── the link's own threads ─────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        failure: StatestreamError = errors.Closed("the client was closed")
        try:
            while not self._closed:
                channel = self._dial()
                while channel is not None and self._serve(channel):
                    pass
        except Exception as error:
            failure = errors.InternalError(f"the client's connection thread ended: {error!r}")
            failure.__cause__ = error
        self._closed = True
        self._ended_for_good.set()
        self._take(block=False)
        with self._lock:
            self.core.give_up(self._hopeless or failure)
        self._online.set()
        self._release_channel()
        self._operations.put(None)  # For the thread that may still wait for a frame to write.

    def _dial(self) -> grpc.Channel | None:
        state = self.state
        channel = channel_to(state.address, self.settings, state.receives)
        try:
            request = server_info_request()
            timeout = min(5.0, self.settings.connect_timeout)
            pending = server_pb2_grpc.ServerServiceStub(channel).GetServerInfo.future(
                request, timeout=timeout, metadata=self.metadata
            )
            pending.add_done_callback(lambda _: self._operations.put(None))
            self._pump(timeout + 1.0, stop=pending.done)
            if self._closed:
                pending.cancel()
                channel.close()
                return None
            longer = state.dialled(pending.result())
        except (grpc.RpcError, StatestreamError) as error:
            channel.close()
            cause = error if isinstance(error, StatestreamError) else read_rpc_error(error, state.where)
            delay = state.refused(cause)
            if state.hopeless:
                # Who waits, and who comes later, hears why.
                self._closed, self._hopeless = True, state.closed(forked=False)
            self._pump(delay)
            return None
        if longer:
            # A channel's limit stands from its beginning.
            channel.close()
            channel = channel_to(state.address, self.settings, state.receives)
        self._channel, self.state.away = channel, False
        return channel

    def _serve(self, channel: grpc.Channel) -> bool:
        """Has a stream on a channel until it is over; whether the next one is to be on this channel, too."""
        state, core = self.state, self.core
        ended = self._over = threading.Event()
        self._stream += 1
        try:
            with self._lock:
                state.began(time.monotonic())
            self._call = inference_pb2_grpc.InferenceServiceStub(channel).Stream(
                self._requests(self._stream), metadata=state.stream_metadata
            )
            self._online.set()
            for response in self._call:
                with self._lock:
                    if state.tracing is not None:
                        state.tracing.received(response)
                    core.receive(response, now := time.monotonic())
                    core.buffer.advance(now)
                    over = (core.going_away or not state.answered) and state.over()
                    pending = core.pending
                if over:
                    break
                if pending:
                    self._operations.put(None)
            else:
                state.cause = read_code(grpc.StatusCode.OK, "the server ended the stream", state.where)
        except grpc.RpcError as error:
            if not state.silent:
                state.cause = read_rpc_error(error, state.where)
        finally:
            self._stream += 1
            with self._lock:
                state.ended(closed=self._closed)
            if state.denied is None:
                self._online.clear()
            ended.set()
            self._operations.put(None)
            self._call.cancel()
            if state.denied is None:
                self._release_channel()
        if state.denied is not None:
            return self._stay()
        if not self._closed:
            self._pump(state.after(time.monotonic()))
        return False

    def _stay(self) -> bool:
        """Keeps the channel for calls that need no stream until one is wanted: True; False once the server is away."""
        self._ended_for_good.wait(FIRST)  # Streams that are refused are not to follow each other as fast as they can.
        while not (self._closed or self.state.away):
            self._take(block=False)
            with self._lock:
                wanted = self.state.wants_stream()
            if wanted:
                return True
            self._take(block=True)
        self._online.clear()
        self._release_channel()
        return False

    def _requests(self, stream: int) -> Iterator[StreamRequest]:
        """Frames for gRPC, which iterates over them in a thread of its own."""
        core, operations = self.core, self._operations
        while self._stream == stream and not self.state.renewing:
            with self._lock:
                request = core.next_request(time.monotonic()) if self._stream == stream else None
                due = core.due() if request is None else None
                if request is not None and self.state.tracing is not None:
                    self.state.tracing.wrote(request)
            if request is not None:
                yield request
                self._take(block=False)
            else:
                self._take(block=True, until=due)
        # The last token may have been for the next stream's thread.
        operations.put(None)

    def _take(self, *, block: bool, until: float | None = None) -> None:
        """Runs the operations that wait; with `block` waits for the first."""
        operations = self._operations
        if not block and operations.empty():
            return
        with contextlib.suppress(queue.Empty):
            timeout = None if until is None else max(0.0, until - time.monotonic())
            operation = operations.get(block, timeout)
            with self._lock:
                while True:
                    if operation is not None:
                        operation()
                    if operations.empty():
                        return
                    operation = operations.get(block=False)

    def _watch(self) -> None:
        """Tells callers whom the server does not answer, and ends a stream on which nothing comes any more."""
        while not self._ended_for_good.wait(look_after(self.settings.retry_timeout)):
            call = self._call
            if call is None or not self._online.is_set():
                continue
            with self._lock:
                useless = self.core.online and self.state.is_useless(time.monotonic())
            if useless:
                call.cancel()
            self._operations.put(None)

    def _pump(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Runs operations for some time without a server, and gives callers up who waited too long."""
        until = time.monotonic() + seconds
        while not self._closed:
            now = time.monotonic()
            if not self._online.is_set():
                with self._lock:
                    self.state.waits(now)
            if now >= until or stop():
                return
            self._take(block=True, until=min(until, now + 0.25))

    def _release_channel(self) -> None:
        channel, self._channel, self._call = self._channel, None, None
        if channel is not None:
            channel.close()
