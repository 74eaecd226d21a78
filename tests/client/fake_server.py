"""A real gRPC server over `World`, that a test can cut, restart and make lose replies.

Models: "sum" adds up its inputs (sessions), "double" doubles (predict), "upper" spells in capitals (generate).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
from grpc_status import rpc_status

from statestream import errors
from statestream.contract.tensors import from_tensor, to_tensor
from statestream.errors import StatestreamError, to_status
from statestream.signature import Signature
from statestream.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from tests.client.world import FEATURES, MODEL, Row, Stream, World


def _signature(dtype: str, shape: list[int], *, time: bool) -> Signature:
    signature = Signature(format=1)
    for specs, name in ((signature.inputs, "x"), (signature.outputs, "y")):
        spec = specs.add(name=name, dtype=dtype, shape=shape, batch_axis=0)
        if time:
            spec.time_axis = 1
    return signature


def _models() -> dict[str, model_pb2.Model]:
    total = _signature("float32", [-1, -1, FEATURES], time=True)
    total.states.add(input="h", output="h_next", dtype="float32", shape=[-1, FEATURES], batch_axis=0)
    total.feedback.add(output="y", input="x")
    kinds = model_pb2.ModelKind
    return {
        MODEL: model_pb2.Model(name=MODEL, kind=kinds.MODEL_KIND_SESSION, signature=total),
        "double": model_pb2.Model(
            name="double",
            kind=kinds.MODEL_KIND_PREDICT,
            signature=_signature("float32", [-1, FEATURES], time=False),
        ),
        "upper": model_pb2.Model(
            name="upper", kind=kinds.MODEL_KIND_GENERATE, signature=_signature("int64", [-1, -1], time=True)
        ),
    }


class _Routes(grpc.ServerInterceptor):
    """Notes the route keys that come."""

    def __init__(self, routes: list[tuple[str, str]]) -> None:
        self._routes = routes

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        metadata = dict(details.invocation_metadata)
        self._routes.append((details.method.rsplit("/", 1)[1], metadata.get("x-session-id", "")))
        return continuation(details)


class Fake(
    inference_pb2_grpc.InferenceServiceServicer,
    session_pb2_grpc.SessionServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    server_pb2_grpc.ServerServiceServicer,
):
    """One server on a port of its own that stays the same over restarts."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World(max_steps=16, window=64)
        self.models = _models()
        for model in self.models.values():
            model.version, model.is_default = 1, True
        self.lose_replies = 0
        """So many more result frames are computed, and then the stream ends in their place."""
        self.gate = threading.Event()
        """While it is clear, no chunk is answered."""
        self.gate.set()
        self.halt: int | None = None
        """A streamed answer waits for the gate behind so many messages."""
        self.halted = threading.Event()
        """One does."""
        self.arrived = threading.Event()
        """A chunk came."""
        self.waiting = 0
        """So many streams have a chunk that waits for the gate."""
        self.streams = 0
        self.fault: grpc.StatusCode | None = None
        """Every stream ends with it, at its first frame or at `poison`."""
        self.poison: float | None = None
        """The input that the server does not survive, where not every frame is."""
        self.unheard: Callable[[Any], bool] = lambda request: False
        """Requests of a stream that are taken for lost: nothing happens, nobody is told."""
        self.unary_failures = 0
        """So many more unary calls fail with UNAVAILABLE."""
        self.draining = False
        """It says that it is about to leave."""
        self.not_owner = 0
        """So many more calls about a session are refused, as another server had it."""
        self.breaks = 0
        """So many more forks meet a stream that breaks and is opened again before they are looked at."""
        self.routes: list[tuple[str, str]] = []
        """Of every call its method and its route key."""
        self.opened: dict[str, str] = {}
        """Of every session the route key of the stream that opened it last."""
        self.peers: set[str] = set()
        """Where streams came from."""
        self.reopened = threading.Event()
        """A session was opened, for the first time or again."""
        self._lock = threading.RLock()
        self._open: set[queue.SimpleQueue[Any]] = set()
        self._server: grpc.Server | None = None
        self.port = 0
        self.start()

    # ── what a test does to it ─────────────────────────────────────────────────────────────────

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        server = grpc.server(
            futures.ThreadPoolExecutor(32),
            interceptors=[_Routes(self.routes)],
            options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 5_000)],
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, server)
        server_pb2_grpc.add_ServerServiceServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"localhost:{self.port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        self.drop()
        self.gate.set()
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def drop(self) -> None:
        """Ends all streams, as a broken connection does."""
        with self._lock:
            for out in self._open:
                out.put(None)

    def go_away(self) -> None:
        """Announces that the server leaves."""
        with self._lock:
            for out in self._open:
                out.put(inference_pb2.StreamResponse(go_away=inference_pb2.GoAwayFrame()))

    def ask_to_move(self, *handles: int) -> None:
        """Asks that sessions be taken elsewhere."""
        frame = inference_pb2.MoveFrame(handles=np.asarray(handles, "<u4").tobytes())
        with self._lock:
            for out in self._open:
                out.put(inference_pb2.StreamResponse(move=frame))

    def restart(self, *, lose_everything: bool = False) -> None:
        """Killed and started again: what was not saved is gone."""
        self.stop()
        with self._lock:
            self.world.restart(lose_everything=lose_everything)
        self.start()

    # ── inference ──────────────────────────────────────────────────────────────────────────────

    def Stream(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        route = str(dict(context.invocation_metadata()).get("x-session-id", ""))
        with self._lock:
            stream = Stream(self.world)
            self._open.add(out)
            self.streams += 1
            self.peers.add(context.peer())

        def read() -> None:
            try:
                for request in request_iterator:
                    for id in request.open.ids:
                        self.opened[id] = route
                    if self.unheard(request):
                        continue
                    if request.WhichOneof("request") == "chunk":
                        self.arrived.set()
                        with self._lock:
                            self.waiting += 1
                        self.gate.wait(30)
                        with self._lock:
                            self.waiting -= 1
                    if self.fault is not None and self._is_poison(request):
                        out.put(None)
                        return
                    with self._lock:
                        responses = stream.receive(request)
                        if request.open.ids:
                            self.reopened.set()
                        if self.lose_replies and request.WhichOneof("request") == "chunk":
                            self.lose_replies -= 1
                            out.put(None)
                            return
                    for response in responses:
                        out.put(response)
            except grpc.RpcError:
                pass
            out.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            while (response := out.get()) is not None:
                yield response
            context.abort(self.fault or grpc.StatusCode.UNAVAILABLE, "cut by the test")
        finally:
            with self._lock:
                self._open.discard(out)

    def _halt(self, messages: int) -> None:
        if messages == self.halt:
            self.halted.set()
            self.gate.wait(30)

    def _is_poison(self, request: Any) -> bool:
        if self.poison is None:
            return True
        return any(bool((from_tensor(tensor) == self.poison).any()) for tensor in request.chunk.inputs)

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._answer(context, lambda: self._model(request.model))
        x = from_tensor(request.inputs[0])
        return inference_pb2.PredictResponse(version=1, outputs=[to_tensor("y", x * 2)])

    def Forecast(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._answer(context, lambda: self._model(request.model))
        source, columns = request.WhichOneof("source"), []
        if source == "session_id":
            row = self._answer(context, lambda: self._row(request.session_id, request.epoch))
            state = row.state[np.newaxis].copy()
            columns = [to_tensor("s", state)]
        elif source == "start":
            state = from_tensor(request.start.columns[0])
        elif request.history.lengths:
            lengths = np.frombuffer(request.history.lengths, "<u4")
            parts = np.split(from_tensor(request.history.inputs[0]), np.cumsum(lengths)[:-1])
            state = np.stack([part.sum(axis=0) for part in parts])
        else:
            state = from_tensor(request.history.inputs[0]).sum(axis=1)
        for offset in range(request.horizon):
            self._halt(offset)
            state = state + state
            if offset >= request.from_step:
                response = inference_pb2.ForecastResponse(offset=offset, outputs=[to_tensor("y", state[:, np.newaxis])])
                if offset == request.from_step:
                    response.start.version = 1
                    response.start.columns.extend(columns)
                yield response

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._answer(context, lambda: self._model(request.model))
        letters = [text.upper()[: request.max_tokens or None] for text in request.texts]
        if request.stream:
            for number, letter in enumerate(letters[0]):
                self._halt(number)
                if number >= request.from_token:
                    token = inference_pb2.GeneratedToken(text=letter, token=ord(letter), log_probability=-1.0)
                    yield inference_pb2.GenerateResponse(tokens=[token])
            return
        several = max(1, request.sampling.num_samples, request.beam_search.n_best)
        for place, whole in enumerate(letters):
            self._halt(place)
            tokens = [ord(letter) for letter in whole]
            text = inference_pb2.GeneratedText(
                text=whole, tokens=tokens, log_probabilities=[-1.0] * len(tokens), log_probability=-1.0 - len(tokens),
                score=-1.0, ended=True,
            )  # fmt: skip
            source = inference_pb2.GeneratedSource(source=place, texts=[text] * several)
            yield inference_pb2.GenerateResponse(sources=[source], version=1)

    # ── sessions ───────────────────────────────────────────────────────────────────────────────

    def GetSession(self, request: Any, context: grpc.ServicerContext) -> Any:
        row = self._answer(context, lambda: self._row(request.session_id))
        return session_pb2.GetSessionResponse(session=self._describe(request.session_id, row))

    def ListSessions(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            ids = sorted(i for i in self.world.rows if i > request.page_token)
            page = ids[: min(2, request.page_size)]
            return session_pb2.ListSessionsResponse(
                sessions=[self._describe(i, self.world.rows[i]) for i in page],
                next_page_token=page[-1] if len(ids) > len(page) else "",
            )

    def ForkSession(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.breaks:
            self.breaks -= 1
            self.reopened.clear()
            self.drop()
            self.reopened.wait(30)
        row = self._answer(context, lambda: self._row(request.session_id, request.epoch))
        with self._lock:
            fork = row.copy()
            fork.epoch, fork.incarnation, fork.ephemeral = 1, 0, request.ephemeral
            fork.replies = {}
            self.world.rows[request.fork_id] = fork
            self.world.save([request.fork_id])
        return session_pb2.ForkSessionResponse(session=self._describe(request.fork_id, fork))

    def SnapshotSession(self, request: Any, context: grpc.ServicerContext) -> Any:
        row = self._answer(context, lambda: self._row(request.session_id, request.epoch))
        blob = row.position.to_bytes(8, "little") + row.state.tobytes()
        return session_pb2.SnapshotSessionResponse(snapshot=blob, position=row.position)

    def RestoreSession(self, request: Any, context: grpc.ServicerContext) -> Any:
        def restore() -> Row:
            if len(request.snapshot) != 8 + 4 * FEATURES:
                raise errors.SnapshotInvalid("not a snapshot")
            state = np.frombuffer(request.snapshot[8:], np.float32).copy()
            return Row(1, b"", 0, position=int.from_bytes(request.snapshot[:8], "little"), state=state)

        row = self._answer(context, restore)
        self.world.rows[request.session_id] = row
        self.world.save([request.session_id])
        return session_pb2.RestoreSessionResponse(session=self._describe(request.session_id, row))

    # ── models, server ─────────────────────────────────────────────────────────────────────────

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        model = model_pb2.Model()
        model.CopyFrom(self._answer(context, lambda: self._model(request.name)))
        model.version = request.version or model.version
        return model_pb2.GetModelResponse(model=model)

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        return model_pb2.ListModelsResponse(models=list(self.models.values()))

    def LoadModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        return model_pb2.LoadModelResponse(model=self._answer(context, lambda: self._model(request.name)))

    def UnloadModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._answer(context, lambda: self._model(request.name))
        return model_pb2.UnloadModelResponse()

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return server_pb2.GetServerInfoResponse(
            version="0.0.0",
            protocol=self.world.protocol,
            server_id="fake",
            limits=self.world.limits,
            durability=self.world.durability,
            store=server_pb2.StoreInfo(kind="memory"),
            device="cpu",
            draining=self.draining,
        )

    def GetStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:
        return server_pb2.GetStatisticsResponse(
            batches=3,
            rows=70,
            steps=90,
            batches_by_reason={"all": 1, "time": 2},
            batches_by_size=[1, 0, 0, 0, 0, 0, 2],
            batches_by_wait=[0, 3],
            classes={"live": server_pb2.ClassShare(batches=3, seconds=0.5)},
        )

    def _model(self, name: str) -> model_pb2.Model:
        if name not in self.models:
            raise errors.ModelNotFound(f"no model {name!r}")
        return self.models[name]

    def _row(self, session_id: str, epoch: int = 0) -> Row:
        if self.not_owner:
            self.not_owner -= 1
            raise errors.NotOwner(f"another server has session {session_id!r}")
        row = self.world.rows.get(session_id)
        if row is None:
            raise errors.SessionNotFound(f"no session {session_id!r}")
        if epoch not in (0, row.epoch):
            raise errors.SessionMoved(f"session {session_id!r} is at epoch {row.epoch}, not {epoch}")
        return row

    def _answer(self, context: grpc.ServicerContext, make: Any) -> Any:
        try:
            with self._lock:
                if self.unary_failures:
                    self.unary_failures -= 1
                    context.abort(grpc.StatusCode.UNAVAILABLE, "failed by the test")
                return make()
        except StatestreamError as error:
            context.abort_with_status(rpc_status.to_status(to_status(error)))

    def _describe(self, session_id: str, row: Row) -> session_pb2.Session:
        return session_pb2.Session(
            model=MODEL,
            version=1,
            id=session_id,
            position=row.position,
            durable_position=self.world.durable(session_id),
            epoch=row.epoch,
            residence=session_pb2.RESIDENCE_RESIDENT,
            ephemeral=row.ephemeral,
        )
