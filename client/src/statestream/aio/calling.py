"""Calls beside the stream, made again where the server could not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from statestream.aio.link import Link
from statestream.aio.waiting import Attempt
from statestream.calls import check_request
from statestream.unary import StreamCall, UnaryCall

T = TypeVar("T")


async def answer(link: Link, call: UnaryCall[T], attempts: Callable[[], Attempt] | None = None) -> T:
    """Makes a call.

    Args:
        link: Where.
        call: Which.
        attempts: Gives its tries, which begin now; the link's where left out.

    Raises:
        StatestreamError: The server's error, or ServerUnavailable after `retry_timeout`.
    """
    attempt = (attempts or link.attempts)()
    while True:
        async with attempt() as channel:
            check_request(call.request, link.state.info.limits)
            method = call.method(channel)
            if call.streamed:
                return call.read([message async for message in method(call.request, metadata=link.metadata)])
            return call.read(await method(call.request, metadata=link.metadata))


async def answers(link: Link, call: StreamCall[T], attempts: Callable[[], Attempt] | None = None) -> AsyncIterator[T]:
    """Makes a call, from the first item that is asked for on; no item comes twice. Else as `answer`."""
    attempt, done = (attempts or link.attempts)(), 0
    while True:
        async with attempt() as channel:
            messages = call.method(channel)(call.request, metadata=link.metadata)
            try:
                number = 0
                async for message in messages:
                    for item in call.read(message):
                        number += 1
                        if number > done:
                            done = number
                            yield item
                return
            finally:
                messages.cancel()
