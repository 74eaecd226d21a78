"""Received: the body of a request, weighed while it comes and unpacked; an answer, written as its reader takes it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from statestream.contract import errors

CODINGS: Final = ("gzip", "deflate")
_SLICE: Final = 256 << 10
"""Bytes that are unpacked, or written, in one turn of the loop."""

Grow = Callable[[int], None]
"""Counts bytes that a request makes the server hold beside those before; raises `Overloaded` where it is too much."""


def length_of(request: Request, most: int) -> int:
    """How many bytes a request says that its body has, 0 where it does not say.

    Raises:
        InvalidRequest: More than it may.
    """
    told = int(request.headers.get("content-length", "0"))
    if told > most:
        raise _too_long(most, str(told))
    return told


async def body_of(request: Request, most: int, seconds: float, grow: Grow) -> bytes:
    """The body of a request, unpacked.

    Args:
        request: Nothing of its body was read; what `length_of` says is counted already.
        most: Bytes that it may have, before and after it is unpacked.
        seconds: How long all of it may take to come.
        grow: Hears of bytes beyond what `length_of` says.

    Raises:
        StatestreamError: It is too long, too slow, or not what Content-Encoding says.
        ClientDisconnect: The caller has gone.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", *CODINGS):
        raise errors.Unimplemented(f"Content-Encoding is {errors.quoted(coding)}; expected gzip or deflate")
    inflate = None if coding == "identity" else zlib.decompressobj(47)
    counted, found = length_of(request, most), bytearray()

    def took(data: bytes) -> None:
        nonlocal counted
        if len(found) + len(data) > most:
            raise _too_long(most, "more")
        if len(found) + len(data) > counted:
            grow(len(found) + len(data) - counted)
            counted = len(found) + len(data)
        found.extend(data)

    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if inflate is None:
                    took(chunk)
                    continue
                while chunk:
                    took(inflate.decompress(chunk, _SLICE))
                    chunk = inflate.unconsumed_tail
                    if inflate.unused_data:
                        raise errors.BadFrame(f"the body goes on behind its {coding} data; expected nothing there")
                    if chunk:
                        await asyncio.sleep(0)  # A little that unpacks to much holds nobody up.
    except zlib.error as error:
        raise errors.BadFrame(f"the body is not {coding}: {error}; expected what Content-Encoding says") from error
    except TimeoutError as error:
        raise errors.BadFrame(f"the body did not come within {seconds:g} s; send it at once") from error
    if inflate is not None and not inflate.eof:
        raise errors.BadFrame(f"the body ends within its {coding} data; expected all of it")
    return bytes(found)


def packed(data: bytes, coding: str) -> bytes:
    """Bytes in a coding."""
    packer = zlib.compressobj(1, wbits=31 if coding == "gzip" else 15)
    return packer.compress(data) + packer.flush()


def coding_of(accepted: str) -> str:
    """The coding that a caller takes by Accept-Encoding, "" for none that is known here."""
    found = list[tuple[float, str]]()
    for part in accepted.lower().split(",")[:32]:
        name, _, weight = part.strip().partition(";")
        try:
            share = float(weight.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        if name.strip() in CODINGS and 0 < share <= 1:
            found.append((-share, name.strip()))
    return min(found)[1] if found else ""


class Written(Response):
    """An answer that leaves in pieces: the port gives up a reader who takes nothing of one for too long."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Writes it; returns where the reader is gone."""
        body = memoryview(bytes(self.body))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for at in range(0, len(body) or 1, _SLICE):
            piece, more = bytes(body[at : at + _SLICE]), at + _SLICE < len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})


def _too_long(most: int, came: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(f"the body has {came} bytes where {most} are taken; send smaller requests")
