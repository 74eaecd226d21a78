"""The console's page: its files, as they are shipped. What they ask is answered by `pages`, or by `workers/console`."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from statestream_server.edges.http.console import door

_FILES: Final = {
    "": ("index.html", "text/html"),
    "console.css": ("console.css", "text/css"),
    "console.js": ("console.js", "text/javascript"),
    "charts.js": ("charts.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}


def routes() -> list[Route]:
    """The paths of the page, and what leads to it."""
    folder = resources.files("statestream_server.edges.http.console") / "static"

    def route(path: str, name: str, kind: str) -> Route:
        data = (folder / name).read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {**door.SAFE, "ETag": tag, "Cache-Control": "no-cache"}

        async def answer(request: Request) -> Response:
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return Response(data, media_type=kind, headers=headers)

        return Route(f"/console/{path}", answer, methods=["GET"])

    return [
        Route("/", _home, methods=["GET"]),
        Route("/console", _home, methods=["GET"]),
        *(route(path, name, kind) for path, (name, kind) in _FILES.items()),
    ]


async def _home(request: Request) -> Response:
    return RedirectResponse("/console/", 307)
