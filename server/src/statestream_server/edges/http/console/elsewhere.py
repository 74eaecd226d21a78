"""What the console's path says where several workers serve: it imports none of their rooms."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from statestream_server.edges.http.console import door


def elsewhere(workers: int) -> list[Route]:
    """What the console's path says where several workers serve, none of which has all sessions."""

    async def answer(request: Request) -> Response:
        said = (
            f"the console is of a server of one process, and this one has {workers} workers; /metrics has the figures"
            " of all, and `statestream sessions ls` lists the sessions\n"
        )
        return Response(said, 404, media_type="text/plain", headers=door.SAFE)

    return [Route(path, answer, methods=["GET"]) for path in ("/console", "/console/")]
