"""The states of a connection, without I/O: dialled, streaming, backing off, over; both links go through them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc

from statestream import forks
from statestream.backoff import MOST, Backoff, tell
from statestream.budget import RetryBudget, is_fault, silence
from statestream.calls import Attempts, read_rpc_error, unavailable
from statestream.contract import errors, protocol
from statestream.contract.errors import StatestreamError
from statestream.core import StreamCore
from statestream.credentials import header
from statestream.settings import Settings
from statestream.shards import Route
from statestream.tracing import Tracing
from statestream.v1.server_pb2 import GetServerInfoResponse

log = logging.getLogger("statestream")


class Connection:
    """What one shard's connection is told of what happens to it, and what it makes of that. Times are monotonic.

    Attributes:
        info: What the server said of itself when it was dialled the last time.
        receives: The most bytes of one message that the next channel takes.
        cause: Why there is no stream, or was none.
        streams: How many streams there were, with that of this moment.
        renewing: This stream ends once it is answered, and the next one goes where calls go now.
        answered: On this stream a caller has had an answer.
        silent: This stream was ended because nothing came on it.
        away: A call beside streams met that the server is away, which nothing else tells where there is no stream.
        denied: Why the last stream was refused, where that was for want of a right: a token may have others, so that
            calls beside streams go on.
        tracing: Makes spans; None where none are wanted.
    """

    def __init__(
        self, core: StreamCore, route: Route, settings: Settings, on_reconnect: Callable[[str], None] | None
    ) -> None:
        self.core = core
        self.info = GetServerInfoResponse()
        self.receives = settings.receives(self.info.limits)
        self.cause: StatestreamError | None = None
        self.streams = 0
        self.renewing = False
        self.answered = False
        self.silent = self.away = False
        self.denied: StatestreamError | None = None
        self._settings = settings
        self._route = route
        self._label = route.label
        self._on_reconnect = on_reconnect
        self._backoff = Backoff(route.addresses, min(MOST, settings.retry_timeout / 4))
        self._budget = RetryBudget(settings.retry_timeout, route.addresses, route.label)
        self._began = 0.0
        self._answers = 0
        self._moved = False
        self.tracing = Tracing() if settings.tracing else None

    def missed(self, attempts: Attempts, error: Exception, now: float, *, current: bool) -> float:
        """Seconds until the next try of a call that failed, on the channel of this moment where that is `current`.

        Raises:
            Exception: What it met, where there is to be no other try.
        """
        if isinstance(error, grpc.RpcError):
            found = read_rpc_error(error, self.where)
        elif current:
            raise error
        else:
            found = errors.Closed("the connection was closed under the call")
        if isinstance(found, errors.Closed) and not current:
            found = errors.ServerUnavailable(found.message)  # The link moved to another server.
        if current and isinstance(found, errors.ServerUnavailable | errors.Draining):
            self.away = True
        try:
            return attempts.after(found, now)
        except StatestreamError as final:
            # What the server refused it says itself; where nothing came of it, gRPC's own words are all there is.
            raise final from (error if isinstance(final, errors.Unavailable | errors.InternalError) else None)

    @property
    def address(self) -> str:
        """Where to dial."""
        return self._backoff.address

    @property
    def where(self) -> str:
        """The same, as messages say it."""
        return self._backoff.address + self._label

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries: the route key, the version of the protocol that it is written in, the token."""
        return self._metadata if self.tracing is None else (*self._metadata, *self.tracing.headers())

    @property
    def stream_metadata(self) -> tuple[tuple[str, str], ...]:
        """What the stream of this moment carries."""
        return self._metadata if self.tracing is None else (*self._metadata, *self.tracing.stream_headers())

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        spoken = (protocol.HEADER, str(self.info.protocol or protocol.OLDEST))
        return (*self._route.metadata, spoken, *header(self._settings.token))

    # ── dialling ───────────────────────────────────────────────────────────────────────────────

    def dialled(self, info: GetServerInfoResponse) -> bool:
        """A server answered; whether it needs another channel, on which longer messages are received.

        Raises:
            Unsupported: It speaks no version of the protocol that this release speaks.
            Draining: It is about to leave, and would open nothing: another one is to be found.
        """
        protocol.agreed(info.protocol, info.protocol)
        if info.draining:
            raise errors.Draining(f"{self.where} is leaving and takes no new sessions")
        if self.streams:
            tell(self._on_reconnect, self._backoff, self._label)
        self.info = info
        before, self.receives = self.receives, self._settings.receives(info.limits)
        return self.receives > before

    def refused(self, cause: StatestreamError) -> float:
        """None answered; seconds until the next try."""
        self.cause = cause
        return self._backoff.failed()

    @property
    def hopeless(self) -> bool:
        """Whether no other try would be answered otherwise; what gives tokens may give another one."""
        if isinstance(self.cause, errors.Unauthenticated):
            return not callable(self._settings.token)
        return isinstance(self.cause, errors.Unsupported | errors.PermissionDenied)

    def closed(self, *, forked: bool) -> StatestreamError:
        """What callers are told once the connection has ended for good: that they closed it, or why it is hopeless."""
        cause = self.cause
        if self.hopeless and cause is not None and not forked:
            return type(cause)(cause.message, metadata=cause.metadata)
        return forks.closed(forked=forked)

    # ── a stream ───────────────────────────────────────────────────────────────────────────────

    def began(self, now: float) -> None:
        """A stream begins."""
        self.streams += 1
        self.renewing = self.silent = self._moved = False
        self.denied = None
        self._began, self._answers, self.answered = now, self.core.progress, False
        if self.tracing is not None:
            self.tracing.began(self.address, self.streams)
        self.core.connected(self.info.limits, self.info.durability, now, self.info.server_id)

    def over(self) -> bool:
        """Whether the stream is over, because its server asked for that; asked when an answer came.

        Where a caller has had one and the server does not go away, nobody need ask.
        """
        core = self.core
        if not self.answered and core.progress != self._answers:
            self.answered = True
            self._backoff.succeeded()
        self._moved = core.going_away and core.drained
        return self._moved

    def is_useless(self, now: float) -> bool:
        """Tells callers whom the server does not answer; whether nothing comes on the stream any more."""
        if not self.core.check(now):
            return False
        self.silent, self.cause = True, silence(self.where, self._settings.retry_timeout)
        return True

    def ended(self, *, closed: bool) -> None:
        """The stream is over; with `closed` because the client is."""
        cause = None if self._moved or self.renewing or closed else self.cause
        if isinstance(cause, errors.PermissionDenied):
            # No fault that goes by: whoever needs a stream hears of it at once. Of the connection it says nothing.
            self.denied, self.cause = cause, None
        if self.tracing is not None:
            self.tracing.ended(cause)
        self._budget.ended(None if self.denied else cause, self.core.progress)
        self.core.disconnected(cause if is_fault(cause) and self.denied is None else None)
        if self.denied is not None:
            log.info("%s refuses a stream, calls beside it go on: %s", self.where, self.denied)
            self.core.give_up(self.denied)

    def wants_stream(self) -> bool:
        """Whether a caller waits for what needs a stream, where the last one was refused."""
        self.core.controls.offline()
        return self.core.busy

    def after(self, now: float) -> float:
        """Seconds until the next one is dialled."""
        if self._moved:
            log.info("%s asked to be left; moving on", self.where)
            if not self.answered:
                return self._backoff.failed()  # It may be the same server, again and again.
            self._backoff.leave()
            return 0.0
        if self.renewing:
            log.info("calls to %s do not reach the server of the stream; the next stream follows them", self.where)
            return 0.0
        log.warning("the stream to %s broke: %s", self.where, self.cause)
        return self._backoff.ended(now - self._began, fault=is_fault(self.cause))

    # ── without one ────────────────────────────────────────────────────────────────────────────

    def waits(self, now: float) -> None:
        """There is no server: what needs none is done, and callers who waited too long are told."""
        core = self.core
        core.controls.offline()
        error = self._budget.verdict(busy=core.busy, progress=core.progress, now=now, cause=self.cause)
        if error is not None:
            core.give_up(error)

    def unavailable(self, seconds: float) -> StatestreamError:
        """What a caller is told who waited so long for a server."""
        return unavailable(self._backoff.addresses, seconds, self.cause, self._label)
