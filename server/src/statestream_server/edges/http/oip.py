"""The Open Inference Protocol over REST: paths and bodies in, JSON out."""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from statestream.contract import errors
from statestream.contract.codes import Code
from statestream_server import caller
from statestream_server.edges.identity import identify
from statestream_server.edges.oip import about, bodies, parameters
from statestream_server.edges.oip.inference import Inference
from statestream_server.server import Readiness, Server

log = logging.getLogger(__name__)
_BODY_SECONDS: Final = 10.0
"""How long a request may take to bring its body."""
_MOST_BYTES: Final = 256 << 20
"""Bytes of bodies of all requests under way."""
_SMALL: Final = 1 << 10
"""Answers below this size are not compressed."""
_STATUS: Final = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
_NUMBERS: Final = frozenset({"shape", "dims", "count", "ns", "inference_count", "last_inference"})
"""Fields of 64 bits, which protobuf writes as texts."""
_Page: TypeAlias = Callable[[Request], Awaitable[Response]]


class OipPages:
    """Answers the paths below /v2."""

    def __init__(self, server: Server, readiness: Readiness) -> None:
        """Requests go to the server's rooms; `readiness` says whether it serves."""
        self._server, self._readiness = server, readiness
        self._inference = Inference(server)
        self._held = 0

    def routes(self) -> list[Route]:
        """The paths and what answers them."""
        gets: dict[str, _Page] = {"": self._about, "/health/live": self._live, "/health/ready": self._ready}
        posts: dict[str, _Page] = {
            "/repository/index": self._index,
            "/repository/models/{model}/load": self._load,
            "/repository/models/{model}/unload": self._unload,
        }
        gets["/models/stats"] = self._statistics
        for model in ("/models/{model}", "/models/{model}/versions/{version}"):
            gets[model], gets[f"{model}/ready"] = self._metadata, self._model_ready
            gets[f"{model}/config"], gets[f"{model}/stats"] = self._config, self._statistics
            posts[f"{model}/infer"] = self._infer
        return [
            Route(f"/v2{path}", _guarded(page), methods=[method])
            for method, pages in (("GET", gets), ("POST", posts))
            for path, page in pages.items()
        ]

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        return JSONResponse({"ready": not self._readiness.reason}, 503 if self._readiness.reason else 200)

    async def _about(self, request: Request) -> Response:
        return _told(about.server())

    async def _model_ready(self, request: Request) -> Response:
        self._served(request)
        return JSONResponse({"ready": True})

    async def _metadata(self, request: Request) -> Response:
        model = self._served(request).model
        versions = [each.model.version for each in self._server.registry if each.model.name == model.name]
        return _told(about.metadata(model, versions))

    async def _config(self, request: Request) -> Response:
        return _told(about.config(self._served(request).model))

    async def _statistics(self, request: Request) -> Response:
        name = request.path_params.get("model", "")
        version = parameters.version_of(request.path_params.get("version", ""))
        if name:
            self._server.registry.get(name, version)
        served = ((each.model.name, each.model.version) for each in self._server.registry)
        models = [each for each in served if name in ("", each[0]) and version in (0, each[1])]
        return _told(about.statistics(self._inference.asked, models))

    async def _index(self, request: Request) -> Response:
        ready = bodies.object_of(await self._body(request)).get("ready") is True
        return JSONResponse(_plain(about.index(self._server.registry, ready=ready)).get("models", []))

    async def _load(self, request: Request) -> Response:
        if bodies.object_of(await self._body(request)).get("parameters"):
            raise errors.Unimplemented(
                "the load brings parameters; this server loads what lies in its models folder: put files there and load"
                " without parameters"
            )
        await self._server.selection.load(request.path_params["model"])
        return JSONResponse({})

    async def _unload(self, request: Request) -> Response:
        await self._body(request)
        await self._server.selection.unload(request.path_params["model"])
        return JSONResponse({})

    async def _infer(self, request: Request) -> Response:
        if self._readiness.reason:
            raise errors.Unavailable(f"the server is not ready: {self._readiness.reason}; try again", retry_after=1.0)
        head = request.headers.get("inference-header-content-length")
        if head is not None and not (head.isascii() and head.isdigit() and len(head) < 12):
            raise errors.BadFrame(
                f"Inference-Header-Content-Length is {errors.quoted(head)}; expected a number of bytes"
            )
        most = self._server.settings.limits.max_message_bytes
        if self._held + most > _MOST_BYTES:
            raise errors.Overloaded("too many bodies are under way; try again", retry_after=1.0)
        self._held += most
        try:
            body = await self._body(request)
            path = request.path_params
            size = None if head is None else int(head)
            asked, binary = bodies.request_of(path["model"], path.get("version", ""), body, size)
            del body
            answer, split = bodies.answer_of(asked, await self._inference.infer(asked), binary)
        finally:
            self._held -= most
        headers = {} if split is None else {"Inference-Header-Content-Length": str(split)}
        accepted = request.headers.get("accept-encoding", "")
        if len(answer) >= _SMALL and "gzip" in accepted:
            answer, headers["Content-Encoding"] = gzip.compress(answer, 1), "gzip"
        elif len(answer) >= _SMALL and "deflate" in accepted:
            answer, headers["Content-Encoding"] = zlib.compress(answer, 1), "deflate"
        kind = "application/json" if split is None else "application/octet-stream"
        return Response(answer, headers=headers, media_type=kind)

    async def _body(self, request: Request) -> bytes:
        """The body, decompressed, of `max_message_bytes` at most."""
        most, found = self._server.settings.limits.max_message_bytes, bytearray()
        coding = request.headers.get("content-encoding", "identity")
        if coding not in ("identity", "gzip", "deflate"):
            raise errors.Unimplemented(f"Content-Encoding is {errors.quoted(coding)}; expected gzip or deflate")
        reader = zlib.decompressobj(47) if coding != "identity" else None
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.stream():
                    found += chunk if reader is None else reader.decompress(chunk, most + 1 - len(found))
                    if reader is not None and reader.unused_data:
                        raise errors.BadFrame(f"the body goes on behind its {coding} data; expected nothing there")
                    if len(found) > most:
                        raise errors.InvalidRequest(f"the body has more than {most} bytes; send smaller requests")
        except zlib.error as error:
            raise errors.BadFrame(f"the body is not {coding}: {error}; expected what Content-Encoding says") from error
        except TimeoutError as error:
            raise errors.BadFrame(f"the body did not come within {_BODY_SECONDS:g} s; send it at once") from error
        if reader is not None and not reader.eof:
            raise errors.BadFrame(f"the body ends within its {coding} data; expected all of it")
        return bytes(found)

    def _served(self, request: Request) -> Any:
        version = parameters.version_of(request.path_params.get("version", ""))
        return self._server.registry.get(request.path_params["model"], version)


def _guarded(page: _Page) -> _Page:
    async def answer(request: Request) -> Response:
        try:
            caller.current.set(identify(request.headers.items()))
            return await page(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except errors.StatestreamError as error:
            failed = error
        except Exception as error:
            log.exception("the server failed in a way it did not expect", exc_info=error)
            failed = errors.InternalError("the server failed in a way it did not expect; its log has the details")
        headers = {} if failed.retry_after is None else {"Retry-After": str(max(1, math.ceil(failed.retry_after)))}
        text = f"{failed.reason}: {failed.message}"
        return JSONResponse({"error": text}, _STATUS.get(failed.code, 500), headers)

    return answer


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
