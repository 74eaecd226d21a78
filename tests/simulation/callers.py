"""Callers: what a plan has them do through the public API, and what of their answers the oracle hears."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import grpc
import numpy as np

from statestream import aio
from statestream.calls import read_rpc_error
from statestream.contract import errors
from statestream.contract.errors import StatestreamError
from statestream.contract.tensors import to_tensor
from statestream.settings import Settings
from statestream.v1 import inference_pb2 as pb
from statestream.v1 import inference_pb2_grpc, session_pb2, session_pb2_grpc
from statestream_server.settings import Durability
from tests.simulation.loop import Process
from tests.simulation.model import MODEL, history, start
from tests.simulation.network import Network
from tests.simulation.oracle import Asked, Line, Oracle
from tests.simulation.plan import RETRY, Calls, Operation

_OVER = (errors.Closed, errors.SessionNotFound, errors.SessionExists, errors.AlreadyOpen)
_UNARY = (errors.NotOwner, errors.Draining, errors.Overloaded, errors.Closed)


class Client:
    """A client's process: one client of the library, which several callers share."""

    def __init__(self, process: Process, addresses: str, oracle: Oracle) -> None:
        self.process, self.oracle = process, oracle
        self._addresses = addresses
        self.ready: asyncio.Future[aio.Client] = process.loop.create_future()
        self.lines: dict[tuple[str, int], Line] = {}
        self.holders: dict[tuple[str, int], int] = {}
        """How many callers have a session, by id and handle: one that failed stays with those who have not heard."""

    async def connect(self) -> None:
        """Connects, however long it takes."""
        settings = Settings(connect_timeout=3.0, retry_timeout=RETRY)
        while True:
            with contextlib.suppress(errors.ServerUnavailable):
                self.ready.set_result(await aio.connect(self._addresses, settings=settings))
                return

    def joins(self, session: str, found: aio.Session, sure: tuple[int, ...]) -> Line:
        """A caller has it open, perhaps beside others; `sure` was safe before."""
        key = session, found._handle
        self.holders[key] = self.holders.get(key, 0) + 1
        return self.lines.setdefault(key, Line(sure))

    def leaves(self, session: str, found: aio.Session, *, broken: bool) -> None:
        """A caller does not have it any more, or nobody has because it failed."""
        key = session, found._handle
        self.holders[key] = max(0, self.holders.get(key, 0) - 1)
        if broken or not self.holders[key]:
            self.lines.pop(key, None)


class Caller:
    """One task of a client."""

    def __init__(self, number: int, calls: Calls, client: Client) -> None:
        self.name = f"c{number}"
        self.client, self.oracle = client, client.oracle
        self.loop = client.process.loop
        self._calls = calls
        self._open: dict[str, aio.Session] = {}
        self._since: dict[str, float] = {}
        """When it opened them."""
        self.asked: Asked | None = None

    async def run(self) -> None:
        """Does everything."""
        self._aio = await asyncio.shield(self.client.ready)
        for number, operation in enumerate(self._calls.operations):
            if operation.pause:
                await asyncio.sleep(operation.pause)
            await self.perform(
                f"{self.name}[{number}] {operation.kind}", operation, getattr(self, "do_" + operation.kind)
            )

    async def perform(
        self, what: str, operation: Operation, do: Callable[[Operation, str], Awaitable[None]], session: str = ""
    ) -> None:
        """Does one thing, and has the oracle judge how it fails."""
        session = session or self.id(operation.session)
        self.asked = self.oracle.begin(what, session, self.loop.time(), self._since.get(session))
        self.loop.trace(what, session)
        task = asyncio.ensure_future(do(operation, session))
        timer = self.loop.call_later(operation.cancel, task.cancel) if operation.cancel is not None else None
        try:
            await task
            self.loop.trace(what, "done")
        except asyncio.CancelledError:
            self.loop.trace(what, "cancelled")
            if operation.cancel is None:
                self.oracle.violate(f"{what} of {session} was cancelled, and nobody did it")
        except Exception as error:
            self.loop.trace(what, "failed", error)
            self.oracle.failed(self.asked, error, self.loop.time(), self.allowed(operation))
            if isinstance(error, StatestreamError) and not isinstance(error, errors.StoreUnavailable):
                await self._drop(session, broken=True)
        finally:
            if timer is not None:
                timer.cancel()
            self.asked = None

    def id(self, session: int) -> str:
        """The id of a session by number."""
        return f"{'q' if session < self.oracle.plan.wild else 'w'}{session}"

    def allowed(self, operation: Operation) -> tuple[type[StatestreamError], ...]:
        """What else may be heard."""
        return _OVER

    async def _drop(self, session: str, *, broken: bool) -> None:
        gone = self._open.pop(session, None)
        self._since.pop(session, None)
        if gone is not None:
            self.client.leaves(session, gone, broken=broken)
            with contextlib.suppress(StatestreamError):
                await gone.close()

    async def _session(self, session: str, mode: Any = "either", **more: Any) -> aio.Session:
        found = self._open.get(session)
        if found is None:
            sure = self.oracle.known(session).sure
            found = await self._aio.session(MODEL, session, mode=mode, **more)
            self._open[session], self._since[session] = found, self.loop.time()
            self.client.joins(session, found, sure)
            self._durable(session, found)
        return found

    def _line(self, session: str, found: aio.Session) -> Line | None:
        return None if self.oracle.is_wild(session) else self.client.lines.get((session, found._handle))

    def _durable(self, session: str, found: Any) -> None:
        line = self._line(session, found)
        if (
            line is not None
            and line.history is not None
            and (found.durable_position <= self.oracle.position(session, line.history))
        ):
            self.oracle.durable(session, line.history, found.durable_position)

    async def _step(self, session: str, found: Any, count: int) -> None:
        asked = self.asked
        assert asked is not None
        line = self._line(session, found)
        numbers = self.oracle.submit(session, self.name, count)
        outputs = await found.step(
            np.asarray(numbers, np.int64)[:, None] if count > 1 else np.asarray(numbers, np.int64)
        )
        self._took(asked, session, numbers, outputs, line)
        self._durable(session, found)

    def _took(self, asked: Asked, session: str, numbers: list[int], outputs: Any, line: Line | None) -> None:
        outputs = np.asarray(outputs).reshape(len(numbers), -1)
        histories = [history(one) for one in outputs]
        for shorter, longer in pairwise(histories):
            if longer[:-1] != shorter:
                self.oracle.violate(f"{asked.what}: the steps of one chunk do not follow each other: {histories}")
        asked = Asked(asked.what, session, asked.began, asked.sure if session == asked.session else (), asked.since)
        self.loop.trace(asked.what, session, "answered", *histories[-1])
        self.oracle.answer(asked, numbers, histories[-1], line)

    # The operations.

    async def do_open(self, operation: Operation, session: str) -> None:
        await self._drop(session, broken=False)
        await self._session(session, operation.mode)

    async def do_step(self, operation: Operation, session: str) -> None:
        await self._step(session, await self._session(session), operation.count)

    async def do_stream(self, operation: Operation, session: str) -> None:
        found = await self._session(session)
        asked, line = self.asked, self._line(session, found)
        assert asked is not None
        numbers = self.oracle.submit(session, self.name, 2 * operation.count + 1)
        items = [np.asarray([number], np.int64) for number in numbers]
        at = 0
        async for outputs in found.stream(items):
            self._took(asked, session, numbers[at : at + 1], outputs, line)
            at += 1

    async def do_flush(self, operation: Operation, session: str) -> None:
        found = await self._session(session)
        line = self._line(session, found)
        known = line.history if line is not None else None
        durable = await found.flush()
        if known is not None and line is self._line(session, found):
            position = self.oracle.position(session, known)
            if durable < position and self.oracle.plan.durability != Durability.NONE:
                self.oracle.violate(f"{session} was flushed up to {durable}; {list(known)} was answered before")
            self.oracle.durable(session, known, min(durable, position))

    async def do_close(self, operation: Operation, session: str) -> None:
        found = self._open.pop(session, None)
        if found is not None:
            self.client.leaves(session, found, broken=False)
            await found.close()

    async def do_look(self, operation: Operation, session: str) -> None:
        found = [one async for one in self._aio.list_sessions(MODEL)]
        if len({one.id for one in found}) != len(found):
            self.oracle.violate(f"a session is listed twice: {found}")

    async def do_pool(self, operation: Operation, session: str) -> None:
        asked = self.asked
        assert asked is not None
        others = [self.id(number) for number in range(self.oracle.plan.sessions)]
        ids = [one for one in others if not self.oracle.is_wild(one)][:2] or [session]
        asked.rows = tuple(ids)
        begun = [self.oracle.begin(asked.what, one, self.loop.time()) for one in ids]
        async with self._aio.sessions(MODEL, ids=ids) as pool:
            for _ in range(operation.count):
                numbers = [self.oracle.submit(one, self.name, 1) for one in ids]
                outputs = await pool.step(np.asarray(numbers, np.int64))
                for one, number, output in zip(begun, numbers, outputs, strict=True):
                    self._took(one, one.session, number, output, None)

    async def do_fork(self, operation: Operation, session: str) -> None:
        found = await self._session(session)
        await self._step(session, found, 1)
        line = self._line(session, found)
        known = line.history if line is not None and line.history is not None else ()
        copy = self._made_of(session, "f", known)
        forked = await found.fork(copy)
        await self._is_made(copy, known, forked)

    async def do_snapshot(self, operation: Operation, session: str) -> None:
        found = await self._session(session)
        await self._step(session, found, 1)
        line = self._line(session, found)
        known = line.history if line is not None and line.history is not None else ()
        copy = self._made_of(session, "r", known)
        data = await found.snapshot()
        await self._is_made(copy, known, await self._aio.restore(data, model=MODEL, id=copy))

    def _made_of(self, session: str, how: str, known: tuple[int, ...]) -> str:
        """The id of a session that is about to be made of another."""
        self.oracle._number += 1
        copy = f"{session}-{how}{self.oracle._number}"
        self.oracle.made_of(copy, session, known)
        return copy

    async def _is_made(self, copy: str, known: tuple[int, ...], made: aio.Session) -> None:
        self.oracle.is_made(copy, known)
        self._open[copy], self._since[copy] = made, self.loop.time()
        self.client.joins(copy, made, known)
        try:
            await self._step(copy, made, 1)
        except StatestreamError:
            await self._drop(copy, broken=True)
            raise

    async def do_born(self, operation: Operation, session: str) -> None:
        self.oracle._number += 1
        own = f"q{operation.session}-b{self.oracle._number}"
        mark = self.oracle.mark(own)
        self.oracle.known(own).starts.append((mark,))
        try:
            await self._session(own, "create", initial_state=start(mark))
        except errors.StatestreamError as error:
            if isinstance(error, errors.SessionExists):
                raise AssertionError(f"{own} is there before it was made") from error
            await self._session(own, initial_state=start(mark))
        self.oracle.is_made(own, (mark,))
        await self._step(own, self._open[own], operation.count)
        if operation.mode == "create":
            await self._drop(own, broken=False)

    async def do_reset(self, operation: Operation, session: str) -> None:
        await (await self._session(session)).reset()

    async def do_delete(self, operation: Operation, session: str) -> None:
        found = await self._session(session)
        self._open.pop(session, None)
        self.client.leaves(session, found, broken=True)
        await found.delete()

    async def do_replace(self, operation: Operation, session: str) -> None:
        await self._drop(session, broken=True)
        await self._session(session, "replace")

    async def do_begin(self, operation: Operation, session: str) -> None:
        await self._drop(session, broken=True)
        await self._session(session, operation.mode, initial_state=start(self.oracle.mark(session)))

    async def do_restore(self, operation: Operation, session: str) -> None:
        data = await (await self._session(session)).snapshot()
        await self._drop(session, broken=True)
        self._open[session], self._since[session] = (
            await self._aio.restore(data, model=MODEL, id=session),
            self.loop.time(),
        )
        self.client.joins(session, self._open[session], ())

    async def finish(self) -> None:
        """Everything that is open is flushed: what was answered is safe from then on."""
        for session in [*self._open]:
            await self.perform(f"{self.name} last flush", Operation("flush", 0, 0), self.do_flush, session)


class Unary(Caller):
    """A caller without a client: it makes calls, each once."""

    def __init__(self, number: int, calls: Calls, client: Client, network: Network, addresses: list[str]) -> None:
        super().__init__(number, calls, client)
        self._network, self._addresses = network, addresses

    async def run(self) -> None:
        """Does everything."""
        for number, operation in enumerate(self._calls.operations):
            if operation.pause:
                await asyncio.sleep(operation.pause)
            await self.perform(
                f"{self.name}[{number}] {operation.kind}", operation, getattr(self, "do_" + operation.kind)
            )

    def allowed(self, operation: Operation) -> tuple[type[StatestreamError], ...]:
        """What else may be heard."""
        return (*_OVER, *_UNARY, errors.SessionMoved, errors.ServerUnavailable)

    @contextlib.asynccontextmanager
    async def _channel(self) -> Any:
        address = self.loop.draw.choice(self._addresses)
        channel = self._network.channel(address)
        try:
            yield channel
        except grpc.RpcError as error:
            found = read_rpc_error(error, address)
            if not isinstance(found, errors.ServerUnavailable):
                raise found from error
        finally:
            await channel.close()

    async def do_unary_step(self, operation: Operation, session: str) -> None:
        # The call may be applied after the next one: each is a caller of its own.
        await self._call(session, self.oracle.submit(session, object(), operation.count), operation.deadline)

    async def do_unary_twice(self, operation: Operation, session: str) -> None:
        """Of a chunk that says where it starts two copies are under way: it is applied once."""
        position = await self._call(session, self.oracle.submit(session, object(), 1), 3.0)
        if position is None:
            return
        numbers = self.oracle.submit(session, object(), operation.count)
        wait = self.loop.own.choice((0.0, 0.001, 0.02, 0.3))
        copies = [
            asyncio.ensure_future(self._copy(session, numbers, operation.deadline, position, when))
            for when in (0.0, wait)
        ]
        try:
            await asyncio.wait(copies)
        finally:
            for copy in copies:
                copy.cancel()
        for copy in copies:
            copy.result()

    async def _copy(self, session: str, numbers: list[int], deadline: float, position: int, when: float) -> None:
        await asyncio.sleep(when)
        with contextlib.suppress(StatestreamError):  # Others step it, too, and servers forget.
            await self._call(session, numbers, deadline, position)

    async def _call(self, session: str, numbers: list[int], deadline: float, position: int | None = None) -> int | None:
        """One call; where the session stands behind it, None where no answer came."""
        asked = self.asked
        assert asked is not None
        request = pb.StepRequest(
            model=MODEL,
            session_id=session,
            request_id=f"{self.name}-{numbers[0]}",
            inputs=[to_tensor("x", np.asarray(numbers, np.int64)[:, None])],
            mode=pb.OPEN_MODE_EITHER,
            position=position,
        )
        async with self._channel() as channel:
            response = await inference_pb2_grpc.InferenceServiceStub(channel).Step(request, timeout=deadline)
            outputs = np.frombuffer(response.outputs[0].data, np.int64)
            self._took(asked, session, numbers, outputs, None)
            last = history(outputs.reshape(len(numbers), -1)[-1])
            if response.position != len(last) and not self.oracle.is_wild(session):
                self.oracle.violate(f"{asked.what} of {session} stands at {response.position}; its history is {last}")
            self.oracle.durable(session, last, min(response.durable_position, len(last)))
            return int(response.position)
        return None

    async def do_unary_flush(self, operation: Operation, session: str) -> None:
        async with self._channel() as channel:
            await session_pb2_grpc.SessionServiceStub(channel).FlushSession(
                session_pb2.FlushSessionRequest(model=MODEL, session_id=session), timeout=operation.deadline
            )

    async def do_unary_fork(self, operation: Operation, session: str) -> None:
        sure = self.oracle.known(session).sure
        copy = self._made_of(session, "u", sure)
        async with self._channel() as channel:
            await session_pb2_grpc.SessionServiceStub(channel).ForkSession(
                session_pb2.ForkSessionRequest(model=MODEL, session_id=session, fork_id=copy),
                timeout=operation.deadline,
            )
            self.oracle.is_made(copy, sure)

    async def do_unary_delete(self, operation: Operation, session: str) -> None:
        async with self._channel() as channel:
            await session_pb2_grpc.SessionServiceStub(channel).DeleteSession(
                session_pb2.DeleteSessionRequest(model=MODEL, session_id=session), timeout=operation.deadline
            )

    async def finish(self) -> None:
        """Nothing is open."""
