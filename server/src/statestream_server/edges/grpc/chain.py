"""The chain: what every call of the port goes through, whatever its service and its shape.

    metadata → identity, trace context   refused where the caller may not call, before any message of it is taken
    message  → limits                    its bytes are weighed and decoded, its fields capped, the budget of its kind
                                         looked at; every message of a stream is weighed and decoded, too
             → the servicer              which only translates; what it yields is written, as its reader takes it
    errors   ← of all of these           leave as a status with details, unexpected ones as INTERNAL, logged

It is built where services are added, once for every method, and not of gRPC's interceptors: those see no message, so
each would make another handler for every call. Four of them cost a unary call about a thirtieth of its time, this costs
nothing that can be measured. A stream is one call: none of it runs for its messages, but for their decoding.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.message import Message

from statestream.contract import errors, protocol
from statestream_server import caller
from statestream_server.access import certificates
from statestream_server.access.certificates import NOBODY, Names
from statestream_server.caller import ANYBODY, Caller
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.decoding import DecodeBudget, Undecoded, Unreadable, decoder, later
from statestream_server.edges.grpc.failures import Context, abort, begin, refusing
from statestream_server.edges.grpc.readers import Readers
from statestream_server.edges.grpc.rights import CALLS, COUNTED, OPEN, right_of
from statestream_server.edges.identity import asks, certified, identify
from statestream_server.requests import Requests
from statestream_server.sessions.admission.accounts import Budget

if TYPE_CHECKING:
    from statestream_server.tracing import Tracing

_MOST_STRANGERS: Final = 256
_strangers = 0
"""Calls of those who showed no token, where the server asks for one."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Call = Callable[[Any, Context], Awaitable[Any]]
"""Serves a call: takes its request, or an iterator of them, and the context; gives the answer, or None if it wrote."""
Generate = Callable[[Any, Context], AsyncGenerator[Any, None]]
"""Serves a call by yielding its answers."""


class Direct(Protocol):
    """A call that is answered without a task; once it is over nobody hears of it."""

    @property
    def over(self) -> bool:
        """Whether it is: answered, refused, cancelled, or too late."""

    def answer(self, message: Any) -> None:
        """Ends it with a message, of which nothing is kept, or with one that is bytes already."""

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""


Take: TypeAlias = Callable[[Any, Caller, Direct], bool]
"""Takes a request, decoded or not to be read, if it is as usual; False where it did nothing, and the method is asked.

That of a method among `Chain.undecoded` comes as it is.

It is not capped: what it takes it has checked itself. The budget of its method was looked at.
"""


class Chain(grpc.GenericRpcHandler):
    """Finds the method of a call; stands for the server while services are added."""

    def __init__(
        self,
        kinds: Mapping[str, Mapping[str, type[Message]]],
        caps: Caps,
        readers: Readers,
        budgets: Mapping[str, Budget],
        requests: Requests,
        tracing: Tracing | None = None,
    ) -> None:
        """A chain without methods.

        Args:
            kinds: The request of every method, by service and method.
            caps: What a request may have.
            readers: Who watches the calls that are written to.
            budgets: Looked at before a call of a method, `/service/method`, is let in.
            requests: Counts every call that ends.
            tracing: Makes a span of every call; None where none are made.
        """
        self._kinds = kinds
        self._caps = caps
        self._readers = readers
        self._budgets = budgets
        self._requests = requests
        self._tracing = tracing
        self._methods: dict[str, Handler] = {}
        self._others: dict[str, Handler] = {}
        self._later: dict[str, Callable[[], None]] = {}
        self._decoded = DecodeBudget()
        self.refusing = False
        """Whether the last call that was looked at was refused: then the next one may well be."""
        self.direct: dict[str, Take] = {}
        """What takes the usual calls of a method, `/service/method`, where an edge can do without a task."""
        self.undecoded: set[str] = set()
        """Methods, `/service/method`, of which what takes the usual calls, and a stream, decodes messages by itself."""
        self.raw: set[str] = set()
        """Streams, `/service/method`, whose messages are bytes to the servicer, both ways."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """What serves a call; gRPC asks in the call's own task. None for a method that does not exist."""
        handler = self.method(handler_call_details.method)
        if handler is not None:
            try:
                metadata, method = handler_call_details.invocation_metadata, handler_call_details.method
                caller.current.set(admit(metadata, method, None))  # Of a certificate only `granted` can ask.
            except Exception as error:
                self.refused(handler_call_details.method, error)
                return refusing(error)
        return handler

    def refused(self, method: str, error: Exception) -> None:
        """Counts a call that was not let in; of a method that is not there under no name, which callers may choose."""
        self.refusing = True
        self._requests.count(method[1:] if method in self._methods else "", "", _code_of(error), 0.0)

    def take(self, method: str) -> Take | None:
        """What may take the usual calls of `/service/method` without a task; nothing where spans are made of them."""
        return None if self._tracing is not None else self.direct.get(method)

    def look(self, method: str, who: Caller, nbytes: int) -> None:
        """Looks at a unary call of a method, and of so many bytes, before its message is decoded.

        Raises:
            PermissionDenied: The caller has no right to it.
            Unauthenticated: Its token does not hold any more.
            Overloaded: It would wait too long, or be more than its tenant may have.
        """
        budget, grant = self._budgets.get(method), who.grant
        if budget is not None:
            budget.check(who.tenant)
        if grant is not None and method not in OPEN:
            grant.check(right_of(method))
            grant.usage.admit(*COUNTED.get(method, CALLS), nbytes=nbytes)
        self.refusing = False

    def begin(
        self, method: str, take: Take, request: object, who: Caller, call: Direct
    ) -> Callable[[str], None] | None:
        """Has a call taken that was looked at; what is told the code at its end, or None where it was not taken."""
        grant, nbytes = who.grant, 0
        if not take(request, who, call):
            return None
        if grant is not None:
            nbytes = request.ByteSize() if isinstance(request, Message) else 0
            grant.usage.take(*CALLS, nbytes=nbytes)
            grant.enter(call)
        requests, model, began = self._requests, _model_of(request), monotonic()
        requests.under_way += 1

        def count(code: str) -> None:
            requests.under_way -= 1
            requests.count(method[1:], model, code, monotonic() - began)
            if grant is not None:
                grant.usage.give(*CALLS, nbytes=nbytes)
                grant.leave(call)

        return count

    def method(self, name: str) -> Handler | None:
        """What serves `/service/method`; whoever calls it is admitted before."""
        if handler := self._methods.get(name):
            return handler
        service = name.rpartition("/")[0]
        if add := self._later.get(service):
            add()  # Where an import fails, the next call tries again.
            del self._later[service]
            return self.method(name)
        return self._others.get(service)

    def add_later(self, service: str, add: Callable[[], None]) -> None:
        """Has a service that few call added, by `add`, when somebody does: a server answers sooner without it."""
        self._later[f"/{service}"] = add

    def refuse_others(self, service: str, why: str) -> None:
        """Says why the other methods of a service are not there."""
        self._others[f"/{service}"] = refusing(errors.Unimplemented(why))

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Generated code offers every handler twice; see below."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Adds the methods of one service."""
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._methods[method] = self._built(handler, self._kinds[service][name], method)

    def _built(self, handler: Handler, kind: type[Message], name: str) -> Handler:
        decode, of, budget = decoder(kind), _shape(handler), self._budgets.get(name)
        method: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream
        yields = inspect.isasyncgenfunction(method)
        if handler.request_streaming:
            # One that yields nothing reads by itself, and sees what cannot be read.
            call: Call = written(checked(method, self._caps), self._readers) if yields else method
        else:
            decode = self._decoded.bounded(decode)
            call = limited(written(method, self._readers) if yields else method, self._caps, budget)
        call = granted(call, name)
        if self._tracing is not None:
            call = traced(call, name[1:], self._tracing)
        call = answered(call, name[1:], self._requests)
        if name in self.undecoded and not handler.request_streaming:
            call = decoded(call)
        if name in self.raw:
            return of(call, request_deserializer=bytes, response_serializer=bytes)
        return of(
            call,
            request_deserializer=later(decode) if name in self.undecoded else decode,
            response_serializer=handler.response_serializer,
        )


def admit(metadata: Iterable[tuple[str, str | bytes]], method: str = "", names: Names | None = NOBODY) -> Caller:
    """Who calls `/service/method`, with a certificate of these names: see `identify`.

    Whether the server lives and serves is told anybody: orchestrators have no token.

    Raises:
        StatestreamError: The caller may not, or speaks a version of the protocol that is not spoken here.
    """
    for name, value in metadata:
        if name == protocol.HEADER:
            protocol.check_written_in(value)
    if method in OPEN and asks():
        return ANYBODY
    return identify(metadata, names)


def granted(call: Call, name: str) -> Call:
    """A call of a method that has what its caller's token lets it have, and ends when that ends."""
    right, kinds = right_of(name), COUNTED.get(name, CALLS)

    async def granted(request: Any, context: Context) -> Any:
        who = caller.current.get()
        if who.waits:
            who = certified(who, certificates.of_context(context.auth_context()))
            caller.current.set(who)
        grant = who.grant
        if grant is None:
            return await (_watched(call, request, context) if name in OPEN and asks() else call(request, context))
        grant.check(right)
        nbytes = request.ByteSize() if isinstance(request, Message) else 0
        with grant.running(), grant.usage.holding(*kinds, nbytes=nbytes):
            return await call(request, context)

    return granted


async def _watched(call: Call, request: Any, context: Context) -> Any:
    """A call of somebody who showed no token; there are not many at a time."""
    global _strangers
    if _strangers >= _MOST_STRANGERS:
        raise errors.Overloaded("too many callers without a token ask how the server is; ask later", retry_after=1.0)
    _strangers += 1
    try:
        return await call(request, context)
    finally:
        _strangers -= 1


def limited(call: Call, caps: Caps, budget: Budget | None = None) -> Call:
    """A call of one message, which is checked before."""

    async def limited(request: Message | Unreadable, context: Context) -> Any:
        caps.well(request)
        if budget is not None:
            budget.check(caller.current.get().tenant)
        return await call(request, context)

    return limited


def decoded(call: Call) -> Call:
    """A call of one message, which is decoded before."""

    async def decoded(request: Any, context: Context) -> Any:
        return await call(request.message() if isinstance(request, Undecoded) else request, context)

    return decoded


def checked(generate: Generate, caps: Caps) -> Generate:
    """A call of many messages, each of which is checked before; one that cannot be read ends the call."""

    def checked(requests: AsyncIterator[Message | Unreadable], context: Context) -> AsyncGenerator[Any, None]:
        return generate(_Checked(requests, caps), context)

    return checked


def written(generate: Generate, readers: Readers) -> Call:
    """A call whose answers are written as they are yielded; a reader that takes nothing for too long ends it.

    Whatever ends it, the generator is closed before a status leaves: that waits for the reader behind what it has not
    read.
    """

    async def written(request: Any, context: Context) -> None:
        async with aclosing(generate(request, context)) as responses:
            await begin(context)
            with readers.follow() as reading:
                async for response in responses:
                    reading.since = monotonic()
                    await context.write(response)
                    reading.since = None

    return written


def answered(call: Call, method: str, requests: Requests) -> Call:
    """A call whose errors leave as a status, and which is counted."""

    async def answered(request: Any, context: Context) -> Any:
        began, code, model = monotonic(), "CANCELLED", _model_of(request)
        requests.under_way += 1
        try:
            answer = await call(request, context)
            code = "OK"
            return answer
        except grpc.aio.AbortError:
            code = "ABORTED"
            raise
        except Exception as error:
            del request
            code = _code_of(error)
            await abort(context, error, {"request": method, "model": model})
        finally:
            requests.under_way -= 1
            requests.count(method, model, code, monotonic() - began)

    return answered


class _Checked:
    """The messages of a call, each checked when it is drawn."""

    def __init__(self, requests: AsyncIterator[Message | Unreadable], caps: Caps) -> None:
        self._requests = requests
        self._caps = caps

    def __aiter__(self) -> _Checked:
        return self

    async def __anext__(self) -> Message:
        return self._caps.well(await anext(self._requests))


def traced(call: Call, method: str, tracing: Tracing) -> Call:
    """A call of which a span is made."""

    async def traced(request: Any, context: Context) -> Any:
        with tracing.call(method, _model_of(request)) as under:
            try:
                return await call(request, context)
            except Exception as error:
                under.fail(error.reason if isinstance(error, errors.StatestreamError) else type(error).__name__)
                raise

    return traced


def _model_of(request: object) -> str:
    """The model that a call of one message is about, as the caller wrote it; "" for none."""
    name = getattr(request, "model", None) or getattr(request, "model_name", None)
    return name if isinstance(name, str) else ""


def _code_of(error: Exception) -> str:
    return error.code.name if isinstance(error, errors.StatestreamError) else "INTERNAL"


def _shape(handler: Handler) -> Callable[..., Handler]:
    """What makes handlers that take and give as many messages as this one."""
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler
    return grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
