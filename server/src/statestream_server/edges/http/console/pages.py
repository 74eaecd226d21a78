"""The API that the console's page asks, and the page. Rights are as for the same calls over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from statestream_server import caller
from statestream_server.access.tokens import ADMIN, STEP
from statestream_server.edges.http.console import door, figures, models, page, sessions, trying, values
from statestream_server.server import Server


def routes(server: Server) -> list[Route]:
    """The paths of a server in this process and what answers them."""
    return [*page.routes(), *_Api(server).routes()]


class _Api:
    def __init__(self, server: Server) -> None:
        self._server = server

    def routes(self) -> list[Route]:
        server, host = self._server, self._server.settings.host

        def asked(tell: Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]) -> door.Page:
            async def answer(request: Request) -> Response:
                return JSONResponse(await tell(dict(request.query_params)))

            return answer

        def told(tell: Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]) -> door.Page:
            async def answer(request: Request) -> Response:
                return JSONResponse(await tell(await door.object_of(request)))

            return answer

        def tried(tell: Callable[[Server, dict[str, Any]], Coroutine[Any, Any, Any]]) -> door.Page:
            return told(lambda came: tell(server, came))

        gets: dict[str, tuple[door.Page, str]] = {
            "about": (asked(self._about), ""),
            "models": (asked(self._models), ""),
            "sessions": (asked(lambda came: sessions.page(server, came)), STEP),
            "session": (asked(self._session), STEP),
            "watch": (asked(self._watch), STEP),
            "snapshot": (self._snapshot, STEP),
            "statistics": (asked(self._statistics), ADMIN),
            "replicas": (asked(self._replicas), ADMIN),
            "refusals": (asked(self._refusals), ""),
        }
        posts: dict[str, tuple[door.Page, tuple[str, ...]]] = {
            "fork": (told(self._fork), ("calls",)),
            "delete": (told(self._delete), ("calls",)),
            "predict": (tried(trying.predict), ("calls",)),
            "step": (tried(trying.step), ("calls",)),
            "forecast": (tried(trying.forecast), ("calls", "forecasts")),
            "generate": (self._generate, ("calls",)),
        }
        return [
            *(
                Route(f"/console/api/{name}", door.guarded(tell, right, ("calls",), host), methods=["GET"])
                for name, (tell, right) in gets.items()
            ),
            *(
                Route(f"/console/api/{name}", door.guarded(tell, STEP, kinds, host), methods=["POST"])
                for name, (tell, kinds) in posts.items()
            ),
        ]

    async def _about(self, came: dict[str, Any]) -> Any:
        return figures.about(self._server)

    async def _models(self, came: dict[str, Any]) -> Any:
        return {"models": models.all_of(self._server)}

    async def _session(self, came: dict[str, Any]) -> Any:
        return await sessions.described(self._server, values.text(came, "model"), values.text(came, "id"))

    async def _watch(self, came: dict[str, Any]) -> Any:
        since = values.whole(came, "since", 0, (1 << 63) - 1, 0)
        return await sessions.watched(self._server, values.text(came, "model"), values.text(came, "id"), since)

    async def _snapshot(self, request: Request) -> Response:
        came = dict(request.query_params)
        key = caller.key(values.text(came, "model"), values.text(came, "id"))
        data, position = await self._server.admin.snapshot(key)
        return Response(data, media_type="application/octet-stream", headers={"X-Position": str(position)})

    async def _statistics(self, came: dict[str, Any]) -> Any:
        return figures.statistics(self._server)

    async def _replicas(self, came: dict[str, Any]) -> Any:
        return await figures.replicas(self._server)

    async def _refusals(self, came: dict[str, Any]) -> Any:
        return figures.refusals()

    async def _fork(self, came: dict[str, Any]) -> Any:
        key, fork = caller.key(values.text(came, "model"), values.text(came, "id")), values.text(came, "fork")
        made = await self._server.admin.fork(key, fork)
        return {"id": made.key.id, "position": made.position}

    async def _delete(self, came: dict[str, Any]) -> Any:
        await self._server.admin.delete(caller.key(values.text(came, "model"), values.text(came, "id")))
        return {}

    async def _generate(self, request: Request) -> Response:
        lines = _held(trying.generate(self._server, await door.object_of(request)))
        return StreamingResponse(lines, media_type="application/x-ndjson")


async def _held(lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Lines of a text, which is one of its tenant's while they are written, and ends with its token."""
    grant = caller.current.get().grant
    try:
        if grant is None:
            async for line in lines:
                yield line
            return
        with grant.running(), grant.usage.holding("calls", "texts"):
            async for line in lines:
                yield line
    finally:
        await lines.aclose()
