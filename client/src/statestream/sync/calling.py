# Generated from statestream/aio/calling.py by `make twins`; change that one.
"""Calls beside the stream, made again where the server could not answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from statestream.calls import Attempts, check_request
from statestream.sync.link import Link
from statestream.sync.waiting import Attempt
from statestream.unary import StreamCall, UnaryCall

T = TypeVar("T")


def answer(link: Link, call: UnaryCall[T], attempts: Callable[[Attempts], Attempt] | None = None) -> T:
    """Makes a call.

    Args:
        link: Where.
        call: Which.
        attempts: Gives its tries, which begin now; the link's where left out.

    Raises:
        StatestreamError: The server's error, or ServerUnavailable after `retry_timeout`.
    """
    attempt = (attempts or link.attempts)(Attempts(link.settings.retry_timeout, time.monotonic()))
    while True:
        with attempt() as channel:
            check_request(call.request, link.state.info.limits)
            return call.read(call.method(channel)(call.request, metadata=link.metadata))


def answers(link: Link, call: StreamCall[T], attempts: Callable[[Attempts], Attempt] | None = None) -> Iterator[T]:
    """Makes a call, from the first item that is asked for on; no item comes twice.

    One that broke off goes on where the server answers then, with the item behind the last that came. It has
    `retry_timeout` from there. Else as `answer`.
    """
    budget, done = Attempts(link.settings.retry_timeout, time.monotonic()), 0
    attempt = (attempts or link.attempts)(budget)
    while True:
        number = 0
        if call.again is not None and done:
            # From here on it needs nothing any more of what it was made from.
            number, attempt = done - call.again(done), link.attempts(budget)
        with attempt() as channel:
            check_request(call.request, link.state.info.limits)
            messages = call.method(channel)(call.request, metadata=link.metadata)
            try:
                for message in messages:
                    budget.heard(time.monotonic())
                    for item in call.read(message):
                        number += 1
                        if number > done:
                            done = number
                            yield item
                return
            finally:
                messages.cancel()
