"""The Open Inference Protocol over REST: paths and bodies in, JSON and tensors as bytes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any, Final, NamedTuple, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from statestream.contract import errors
from statestream_server import caller
from statestream_server.access.tokens import ADMIN, STEP
from statestream_server.catalog import Served
from statestream_server.edges.http import received
from statestream_server.edges.http.port import names_of
from statestream_server.edges.http.refusals import refusal
from statestream_server.edges.identity import identify
from statestream_server.edges.oip import about, bodies, parameters
from statestream_server.edges.oip.inference import Request as Asked
from statestream_server.edges.oip.inference import inference_of
from statestream_server.server import Readiness, Server

log = logging.getLogger(__name__)

BODY_SECONDS: Final = 10.0
"""How long a request may take to bring its body."""
_MOST_SAID: Final = 64 << 10
"""Bytes of the body of a request that brings no tensors."""
_SMALL: Final = 1 << 10
"""Answers below this size are not compressed."""
_LARGE: Final = 64 << 10
"""Bodies from this size on are worked on in a thread."""
_NUMBERS: Final = frozenset({"shape", "dims", "count", "ns", "inference_count", "last_inference"})
"""Fields of 64 bits, which protobuf writes as texts."""
_ELSEWHERE: Final = ("systemsharedmemory", "cudasharedmemory", "trace", "logging")
"""What Triton has below /v2 and this server has not."""


class _Call:
    """One request, and what it makes the server hold."""

    def __init__(self, request: Request, body: bytes) -> None:
        self.request = request
        self.body = body
        self.grow: received.Grow = lambda nbytes: None

    @property
    def model(self) -> str:
        return str(self.request.path_params.get("model", ""))

    @property
    def version(self) -> str:
        return str(self.request.path_params.get("version", ""))


_Page: TypeAlias = Callable[[_Call], Awaitable[Response]]


class _Kind(NamedTuple):
    """What answers one method of a path.

    Attributes:
        name: What it is called in metrics: as the method over gRPC.
        page: Answers.
        right: What a token must let; None where nobody is asked for one.
    """

    name: str
    page: _Page
    right: str | None = ""


class OipPages:
    """Answers the paths below /v2."""

    def __init__(self, server: Server, readiness: Readiness, body_seconds: float = BODY_SECONDS) -> None:
        """Requests go to the server's rooms; `readiness` says whether it serves.

        `body_seconds` is how long a request may take to bring its body.
        """
        self._server, self._readiness, self.body_seconds = server, readiness, body_seconds
        self._inference = inference_of(server)
        self._json = asyncio.Semaphore(1)
        """Large JSON is read one at a time: of each byte much is made for a moment."""
        self._under_way = 0
        self._idle = asyncio.Event()

    def routes(self) -> list[Route]:
        """The paths and what answers them."""
        paths: dict[str, dict[str, _Kind]] = {
            "": {"GET": _Kind("ServerMetadata", self._about)},
            "/health/live": {"GET": _Kind("ServerLive", self._live, None)},
            "/health/ready": {"GET": _Kind("ServerReady", self._ready, None)},
            "/models": {"GET": _Kind("ListModels", self._models)},
            "/models/stats": {"GET": _Kind("ModelStatistics", self._statistics, ADMIN)},
            "/repository/index": {"POST": _Kind("RepositoryIndex", self._index)},
            "/repository/models/{model}/load": {"POST": _Kind("RepositoryModelLoad", self._load, ADMIN)},
            "/repository/models/{model}/unload": {"POST": _Kind("RepositoryModelUnload", self._unload, ADMIN)},
        }
        for model in ("/models/{model}", "/models/{model}/versions/{version}"):
            paths |= {
                model: {"GET": _Kind("ModelMetadata", self._metadata)},
                f"{model}/ready": {"GET": _Kind("ModelReady", self._model_ready)},
                f"{model}/config": {"GET": _Kind("ModelConfig", self._config)},
                f"{model}/stats": {"GET": _Kind("ModelStatistics", self._statistics, ADMIN)},
                f"{model}/infer": {"POST": _Kind("ModelInfer", self._infer, STEP)},
            }
        known = [Route(f"/v2{path}", _Answerer(self, kinds)) for path, kinds in paths.items()]
        return [*known, Route("/v2/{path:path}", _Answerer(self, {}))]

    async def finished(self, seconds: float) -> None:
        """Returns when what runs for requests has been answered, or after so many seconds."""
        self._idle.clear()
        if self._under_way:
            try:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("leaving with %d HTTP requests unanswered", self._under_way)

    async def answer(self, kind: _Kind, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, and counts it."""
        request, began, code = Request(scope, receive), monotonic(), "CANCELLED"
        requests, name = self._server.requests, f"http/{kind.name}"
        requests.under_way += 1
        with ExitStack() as holding:
            try:
                try:
                    response = await self._answered(kind, request, holding)
                    code = "OK"
                except errors.StatestreamError as error:
                    code, response = error.code.name, refusal(error)
                except ClientDisconnect:
                    return
                except Exception as error:
                    log.exception("the server failed in a way it did not expect", exc_info=error)
                    code = "INTERNAL"
                    response = refusal(
                        errors.InternalError("the server failed in a way it did not expect; its log has the details")
                    )
                if self._readiness.reason:
                    response.headers["Connection"] = "close"
                await response(scope, receive, send)
            finally:
                requests.under_way -= 1
                requests.count(name, request.path_params.get("model", ""), code, monotonic() - began)

    async def _answered(self, kind: _Kind, request: Request, holding: ExitStack) -> Response:
        """What is answered; what it holds is given back where `holding` ends, when its reader has it."""
        infers = kind.name == "ModelInfer"
        most = self._server.settings.limits.max_message_bytes if infers else _MOST_SAID
        call = _Call(request, b"")
        if kind.right is not None:
            who = identify(request.headers.items(), names_of(request))
            caller.current.set(who)
            if who.grant is not None:
                who.grant.check(kind.right)
                holding.enter_context(who.grant.running())
                length = received.length_of(request, most)
                holding.enter_context(who.grant.usage.holding("calls", nbytes=length))
        if infers:
            self._check_ready()
            self._server.budgets.steps.check(caller.current.get().tenant)
        if request.method == "POST":
            length = received.length_of(request, most)
            call.grow = holding.enter_context(self._server.budgets.bodies.growing(length))
            grow, grant = call.grow, caller.current.get().grant if kind.right is not None else None
            if grant is not None:
                theirs = holding.enter_context(grant.usage.growing(length))

                def grow(nbytes: int) -> None:
                    theirs(nbytes)
                    call.grow(nbytes)

            call.body = await received.body_of(request, most, self.body_seconds, grow)
        with self._counted():
            if self._server.tracing is None:
                return await kind.page(call)
            with self._server.tracing.call(f"http/{kind.name}", call.model):
                return await kind.page(call)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _check_ready(self) -> None:
        reason = self._readiness.reason
        if reason == "leaving":
            raise errors.Draining("the server is leaving; send this to another, or again later", retry_after=1.0)
        if reason:
            raise errors.Unavailable(f"the server is not ready: {reason}; try again", retry_after=1.0)

    async def _live(self, call: _Call) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, call: _Call) -> Response:
        return JSONResponse({"ready": not self._readiness.reason}, 503 if self._readiness.reason else 200)

    async def _about(self, call: _Call) -> Response:
        return _told(about.server())

    async def _models(self, call: _Call) -> Response:
        return JSONResponse({"models": sorted({served.model.name for served in self._server.registry})})

    async def _model_ready(self, call: _Call) -> Response:
        model = self._served(call).model
        return JSONResponse({"name": model.name, "ready": True})

    async def _metadata(self, call: _Call) -> Response:
        model = self._served(call).model
        versions = [each.model.version for each in self._server.registry if each.model.name == model.name]
        return _told(about.metadata(model, versions))

    async def _config(self, call: _Call) -> Response:
        return _told(about.config(self._served(call).model))

    async def _statistics(self, call: _Call) -> Response:
        name, version = call.model, 0
        if name:
            named = parameters.version_of(call.version)
            served = self._server.registry.get(name, *named)
            version = served.model.version if any(named) else 0
        all_served = ((each.model.name, each.model.version) for each in self._server.registry)
        models = [each for each in all_served if name in ("", each[0]) and version in (0, each[1])]
        return _told(about.statistics(self._inference.asked, models))

    async def _index(self, call: _Call) -> Response:
        ready = bodies.object_of(call.body).get("ready") is True
        return JSONResponse(_plain(about.index(self._server.registry, ready=ready)).get("models", []))

    async def _load(self, call: _Call) -> Response:
        if bodies.object_of(call.body).get("parameters"):
            raise errors.Unimplemented(
                "the load brings parameters; this server loads what lies in its models folder: put files there and load"
                " without parameters"
            )
        await self._server.selection.load(call.model)
        return JSONResponse({})

    async def _unload(self, call: _Call) -> Response:
        bodies.object_of(call.body)
        await self._server.selection.unload(call.model)
        return JSONResponse({})

    async def _infer(self, call: _Call) -> Response:
        self._check_ready()  # It may have begun to leave while the body came.
        headers = call.request.headers
        asked, binary = await self._read(call, _head_of(headers))
        call.body = b""
        shapes = {name: array.shape for name, array in asked.inputs.items()}
        nbytes = self._inference.answer_bytes(call.model, call.version, shapes)
        bodies.check_answer(nbytes, binary)
        call.grow(nbytes)
        response = await self._inference.infer(asked)
        coding = received.coding_of(headers.get("accept-encoding", ""))

        def made() -> tuple[bytes, int | None, str]:
            answer, split = bodies.answer_of(asked, response, binary)
            if not coding or len(answer) < _SMALL:
                return answer, split, ""
            return received.packed(answer, coding), split, coding

        large = sum(array.nbytes for _, _, array in response.outputs) >= _LARGE
        answer, split, coding = await asyncio.to_thread(made) if large else made()
        told = {} if split is None else {"Inference-Header-Content-Length": str(split)}
        if coding:
            told |= {"Content-Encoding": coding, "Vary": "Accept-Encoding"}
        kind = "application/json" if split is None else "application/octet-stream"
        return received.Written(answer, headers=told, media_type=kind)

    async def _read(self, call: _Call, head: int | None) -> tuple[Asked, set[str] | None]:
        args = call.model, call.version, call.body, head
        if (len(call.body) if head is None else head) > bodies.SMALL:
            async with self._json:
                return await asyncio.to_thread(bodies.request_of, *args)
        if len(call.body) >= _LARGE:
            return await asyncio.to_thread(bodies.request_of, *args)
        return bodies.request_of(*args)

    def _served(self, call: _Call) -> Served:
        return self._server.registry.get(call.model, *parameters.version_of(call.version))


class _Answerer:
    """What Starlette calls for a path."""

    def __init__(self, pages: OipPages, kinds: Mapping[str, _Kind]) -> None:
        self._pages, self._kinds = pages, kinds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        kind = self._kinds.get("GET" if method == "HEAD" else method)
        if kind is not None:
            await self._pages.answer(kind, scope, receive, send)
        elif self._kinds:
            allowed = ", ".join(self._kinds)
            response = refusal(errors.InvalidRequest(f"the method is {errors.quoted(method)}; expected {allowed}"))
            response.status_code, response.headers["Allow"] = 405, allowed
            await response(scope, receive, send)
        else:
            await refusal(_nothing(scope["path"]))(scope, receive, send)


def _nothing(path: str) -> errors.StatestreamError:
    if any(part in _ELSEWHERE for part in path.split("/")[:6]):
        return errors.Unimplemented(
            "this server has no shared memory, traces or log settings to change over this protocol; send tensors in the"
            " body, and see the server's own flags"
        )
    return errors.NotFound(
        f"there is nothing at {errors.quoted(path)}; there are /v2/health/ready, /v2/models, /v2/models/MODEL,"
        " /v2/models/MODEL/infer, /v2/repository/index"
    )


def _head_of(headers: Mapping[str, str]) -> int | None:
    """How many bytes of a body are JSON, None for all.

    Raises:
        BadFrame: It is no number.
    """
    told = headers.get("inference-header-content-length")
    if told is None:
        return None
    if not (told.isascii() and told.isdigit() and len(told) < 12):
        raise errors.BadFrame(f"Inference-Header-Content-Length is {errors.quoted(told)}; expected a number of bytes")
    return int(told)


def _plain(message: Message) -> Any:
    return _numbers(
        MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True), ""
    )


def _numbers(value: Any, field: str) -> Any:
    if isinstance(value, dict):
        return {name: _numbers(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each, field) for each in value]
    return int(value) if field in _NUMBERS and isinstance(value, str) else value


def _told(message: Message) -> Response:
    return JSONResponse(_plain(message))
