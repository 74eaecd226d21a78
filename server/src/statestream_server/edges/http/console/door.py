"""The door: who may ask the console's API, and how what it is refused leaves."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from statestream.contract import errors
from statestream_server import caller
from statestream_server.edges.http.port import names_of
from statestream_server.edges.http.refusals import status_of
from statestream_server.edges.identity import asks, identify
from statestream_server.refusals import recent

log = logging.getLogger(__name__)

HEADER: Final = "x-statestream"
"""What every request to the API has: a page of another origin cannot send it without asking first."""
_MOST_BODY: Final = 1 << 20
_BODY_SECONDS: Final = 10.0
Page: TypeAlias = Callable[[Request], Awaitable[Response]]
SAFE: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of all that the console answers."""


def guarded(page: Page, right: str, kinds: tuple[str, ...], host: str) -> Page:
    """A path of the API.

    Args:
        page: What answers it.
        right: The right that its caller needs; "" for what every token may.
        kinds: What a call of it counts as among those of its tenant.
        host: The address that the server listens on.
    """

    async def held(request: Request) -> Response:
        _check_origin(request, host)
        who = identify(request.headers.items(), names_of(request))
        caller.current.set(who)
        if who.grant is None:
            return await page(request)
        who.check(right)
        with who.grant.running(), who.grant.usage.holding(*kinds):
            return await page(request)

    async def answer(request: Request) -> Response:
        try:
            response = await held(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            response = refusal(told(error))
        return kept_by_nobody(response)

    return answer


def refusal(failed: errors.StatestreamError) -> Response:
    """What the API answers in place of what was asked."""
    return JSONResponse({"error": said(failed)}, *status_of(failed))


def kept_by_nobody(response: Response) -> Response:
    """An answer of the API with the headers that all have."""
    response.headers.update(SAFE)
    response.headers["Cache-Control"] = "no-store"
    return response


def told(error: Exception) -> errors.StatestreamError:
    """What a caller is told of an error, which is noted; one that nobody expected is logged."""
    if not isinstance(error, errors.StatestreamError):
        log.exception("the server failed in a way it did not expect", exc_info=error)
        error = errors.InternalError("the server failed in a way it did not expect; its log has the details")
    recent.note(error)
    return error


def said(error: errors.StatestreamError) -> dict[str, str]:
    """An error as JSON."""
    return {"reason": error.reason, "message": str(error.message)}


def _check_origin(request: Request, host: str) -> None:
    """Checks that the console's own page asks.

    Raises:
        PermissionDenied: A page of another origin does, or one whose name leads here and is not this server's.
    """
    if HEADER not in request.headers:
        raise errors.PermissionDenied(
            f"the request has no header {HEADER}; the console's page sends it, and pages of others cannot:"
            f" send `{HEADER}: console`"
        )
    came = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != came:
        raise errors.PermissionDenied(
            f"the request comes from a page of {errors.quoted(origin)}; expected one of this server, {came[:200]}"
        )
    # Where no token is asked for, a stranger's name that is made to lead here would make its page one of ours.
    if not asks() and not _is_own(came, host):
        raise errors.PermissionDenied(
            f"the console was asked for as {errors.quoted(came)}; expected localhost, an address, or the name that the"
            " server listens on: names of others may be made to lead here. Use the address, or have it ask for tokens"
        )


def _is_own(came: str, host: str) -> bool:
    name = came.rpartition(":")[0] if came.rpartition(":")[2].isdigit() else came
    name = name.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost") or name == host.strip("[]").lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def object_of(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        BadFrame: It is none, is too large, or did not come in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise errors.BadFrame(f"the body is {errors.quoted(kind)}; expected application/json")
    try:
        asked = json.loads(await body_of(request))
    except (ValueError, RecursionError) as error:
        raise errors.BadFrame(f"the body cannot be read as JSON: {errors.shortened(str(error))}") from error
    if not isinstance(asked, dict):
        raise errors.BadFrame(f"the body is {type(asked).__name__}; expected a JSON object")
    return asked


async def body_of(request: Request) -> bytes:
    """The body of a request.

    Raises:
        BadFrame: It is too large, or did not come in time.
    """
    found = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                found += chunk
                if len(found) > _MOST_BODY:
                    raise errors.BadFrame(
                        f"the body has more than {_MOST_BODY:,} bytes; the console is for a few steps: use a client"
                    )
    except TimeoutError as error:
        raise errors.BadFrame(f"the body did not come within {_BODY_SECONDS:g} s; send it at once") from error
    return bytes(found)
