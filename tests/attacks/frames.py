"""What is done to the edge frame by frame, below gRPC: floods, bombs, and callers that only hold on.

The edge of our own says by GOAWAY what was too much (RFC 9113, section 10.5); grpcio's has ways of its own, so there
only what holds for every attack is checked: the server lives, its memory has a bound, and the victim has every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Iterable, Sequence

from statestream.v1 import inference_pb2 as pb
from tests.attacks.arena import Arena
from tests.attacks.attacks import attack
from tests.support import http2
from tests.support.http2 import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    INFO,
    PREDICT,
    PREFACE,
    PROTOCOL_ERROR,
    STREAM,
    Wire,
    call,
    data,
    enveloped,
    integer,
    literal,
    ping,
    raw,
    reset,
    settings,
    window,
    wired,
)

_BATCH = 500
"""Parts of a flood in one write."""
_ENOUGH = 60_000
"""Frames after which a flood that is still taken has succeeded."""


async def _flooded(
    found: Arena, wire: Wire, parts: Iterable[bytes], codes: Sequence[int] = (ENHANCE_YOUR_CALM,)
) -> None:
    """Sends parts until the server ends the connection; ours says why, by one of these codes."""
    await _poured(wire, parts)
    if found.ours:
        end = await wire.ended(10)
        assert end is not None, "the flood is taken"
        assert end.code in codes, end
        assert end.reason or end.code != ENHANCE_YOUR_CALM, "no reason"


async def _poured(wire: Wire, parts: Iterable[bytes]) -> None:
    """Sends parts as long as the server takes them."""
    rest = iter(parts)
    for batch in iter(lambda: b"".join(itertools.islice(rest, _BATCH)), b""):
        if not await wire.send(batch, patience=2):
            return
        await asyncio.sleep(0)  # What it answers is read meanwhile, if anybody reads.


def _numbers(first: int = 1) -> Iterable[int]:
    return range(first, first + 2 * _ENOUGH, 2)


# What costs the server more than its sender.


@attack()
async def rapid_reset(found: Arena) -> None:
    """CVE-2023-44487: calls that are given up as soon as they began."""
    async with wired(found.server.address) as wire:
        await _flooded(found, wire, (call(number, STREAM) + reset(number) for number in _numbers()))


@attack()
async def resets_by_the_server(found: Arena) -> None:
    """CVE-2025-8671: calls that the server has to reset, because of what is sent on them."""
    async with wired(found.server.address) as wire:
        flood = (call(number, STREAM) + window(number, (1 << 31) - 1) for number in _numbers())
        await _flooded(found, wire, flood, (ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR))


@attack()
async def calls_that_are_malformed(found: Arena) -> None:
    """CVE-2019-9514: requests that are refused one by one."""
    async with wired(found.server.address) as wire:
        bad = [pair for pair in http2.headers_of(INFO) if pair[0] != ":path"]
        flood = (raw(1, 5, number, http2.block(bad)) for number in _numbers())
        await _flooded(found, wire, flood, (ENHANCE_YOUR_CALM, PROTOCOL_ERROR))


@attack()
async def continuation_without_end(found: Arena) -> None:
    """CVE-2024-27316: a header block that goes on and on."""
    for size in (0, 1, 16_384):
        async with wired(found.server.address) as wire:
            piece = http2.block([("a" * 10, "b" * 100)]) * 200
            await wire.send(raw(1, 0, 1, http2.block(http2.headers_of(INFO))))
            flood = (raw(9, 0, 1, piece[:size]) for _ in range(_ENOUGH))
            await _flooded(found, wire, flood, (ENHANCE_YOUR_CALM, PROTOCOL_ERROR))


@attack()
async def settings_without_end(found: Arena) -> None:
    """CVE-2019-9515: each wants an acknowledgement."""
    async with wired(found.server.address) as wire:
        await _flooded(found, wire, (settings((4, 65_535 + number % 2)) for number in range(_ENOUGH)))


@attack()
async def settings_of_many_kinds(found: Arena) -> None:
    """Settings that mean nothing, thousands of kinds, each of which somebody might keep."""
    async with wired(found.server.address) as wire:
        flood = (settings(*((kind, kind) for kind in range(first, first + 1000))) for first in range(100, 60_000, 1000))
        for frame in flood:
            await wire.send(frame)
        assert not found.ours or wire.end is not None or await wire.alive()


@attack()
async def pings_without_end(found: Arena) -> None:
    """CVE-2019-9512: each wants an answer, which nobody reads."""
    async with wired(found.server.address) as wire:
        wire._pump_task.cancel()
        await _poured(wire, (ping() for _ in range(_ENOUGH)))
    async with wired(found.server.address) as wire:
        await _flooded(found, wire, (ping() for _ in range(_ENOUGH)))


@attack()
async def data_of_no_bytes(found: Arena) -> None:
    """CVE-2019-9518: DATA that says nothing and ends nothing."""
    async with wired(found.server.address) as wire:
        await wire.send(call(1, STREAM))
        await _flooded(found, wire, (data(1) for _ in range(_ENOUGH)))


@attack()
async def data_of_padding(found: Arena) -> None:
    """The same, with padding in it."""
    async with wired(found.server.address) as wire:
        await wire.send(call(1, STREAM))
        await _flooded(found, wire, (raw(0, 8, 1, b"\x00") for _ in range(_ENOUGH)))


@attack()
async def data_of_a_byte(found: Arena) -> None:
    """CVE-2019-9511 the other way: a message in frames of a byte is answered, and one that never ends is not taken."""
    async with wired(found.server.address) as wire:
        message = enveloped(pb.StreamRequest(frame=1, flush=pb.FlushFrame(handles=bytes(4 * 50))))
        await wire.send(call(1, STREAM))
        await wire.send(*(data(1, message[at : at + 1]) for at in range(len(message))))
        assert await wire.until(lambda: wire.body(1))
        assert await wire.alive()


@attack()
async def windows_without_end(found: Arena) -> None:
    """Windows that grow by a byte a frame."""
    async with wired(found.server.address) as wire:
        await wire.send(call(1, STREAM))
        await _flooded(found, wire, (window(1, 1) for _ in range(_ENOUGH)))
    async with wired(found.server.address) as wire:
        await _flooded(found, wire, (window(0, 1) for _ in range(_ENOUGH)))


@attack()
async def priorities_without_end(found: Arena) -> None:
    """CVE-2019-9513: a tree that is turned over and over."""
    async with wired(found.server.address) as wire:
        flood = (
            raw(2, 0, number, (number - 2 if number > 2 else 0).to_bytes(4, "big") + b"\xff") for number in _numbers()
        )
        await _flooded(found, wire, flood)


@attack()
async def frames_of_unknown_kinds(found: Arena) -> None:
    """Frames that are ignored cost something, too."""
    async with wired(found.server.address) as wire:
        await _flooded(found, wire, (raw(0x42, 0, 0) for _ in range(_ENOUGH)))


# What is larger than it looks.


@attack()
async def a_bomb_of_headers(found: Arena) -> None:
    """HPACK: an entry of 4 KB, named thousands of times in a small block."""
    async with wired(found.server.address) as wire:
        first = http2.block(http2.headers_of(INFO)) + literal(b"x-bomb", b"b" * 3900, 0x40)
        await wire.send(raw(1, 4, 1, first) + data(1, enveloped(b""), end=True))
        await wire.answered(1)
        for number in range(3, 43, 2):
            bomb = http2.block(http2.headers_of(INFO)) + b"\xbe" * 16_000
            if not await wire.send(raw(1, 5, number, bomb)):
                break
        assert await wire.until(lambda: wire.end is not None or wire.status(3) not in (None, "0") or wire.reset_of(3))


@attack()
async def headers_of_no_length(found: Arena) -> None:
    """CVE-2019-9516: thousands of headers without name and value."""
    async with wired(found.server.address) as wire:
        block = http2.block(http2.headers_of(INFO)) + b"\x40\x00\x00" * 5000
        await wire.send(*(raw(1, 5, number, block) for number in range(1, 41, 2)))
        if found.ours:
            assert await wire.ended() is not None


@attack()
async def tables_that_change(found: Arena) -> None:
    """A header table that is made large and small by every block."""
    async with wired(found.server.address) as wire:
        update = b"\x20" + integer(4096, 5, 0x20)
        block = update + http2.block(http2.headers_of(INFO)) + literal(b"x", b"y" * 2000, 0x40)
        flood = (raw(1, 4, number, block) + reset(number) for number in _numbers())
        await _flooded(found, wire, flood)


@attack()
async def frames_that_are_too_large(found: Arena) -> None:
    """A frame that says 16 MiB, of every kind."""
    for kind in (0, 1, 4, 6, 9, 0x42):
        async with wired(found.server.address) as wire:
            await wire.send(call(1, STREAM) + raw(kind, 0, 1 if kind < 2 else 0, bytes(4096), length=(1 << 24) - 1))
            if found.ours:
                end = await wire.ended()
                assert end is not None
                assert end.code in (FRAME_SIZE_ERROR, PROTOCOL_ERROR), end


@attack()
async def more_than_the_window(found: Arena) -> None:
    """DATA without a look at the windows, on a stream of a message that never ends."""
    async with wired(found.server.address) as wire:
        await wire.send(call(1, PREDICT) + data(1, b"\0" + (12 << 20).to_bytes(4, "big")))
        piece = data(1, bytes(16_384))
        await _flooded(found, wire, (piece for _ in range(4000)), (FLOW_CONTROL_ERROR, ENHANCE_YOUR_CALM))


# Who only holds on.


@attack()
async def streams_without_end(found: Arena) -> None:
    """Calls that are begun and never ended, thousands on a connection."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            wire = await stack.enter_async_context(wired(found.server.address))
            for first in range(1, 8001, 400):
                if not await wire.send(*(call(number, STREAM) for number in range(first, first + 400, 2))):
                    break
            if found.ours and await wire.alive():
                assert wire.reset_of(7999) == http2.REFUSED_STREAM
            elif found.ours:
                assert (await wire.ended()).code == ENHANCE_YOUR_CALM  # type: ignore[union-attr]
        found.streams += 4 * 1024


@attack()
async def half_messages(found: Arena) -> None:
    """Calls whose messages say that they are large, of which half comes."""
    found.streams = 200
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            wire = await stack.enter_async_context(wired(found.server.address))
            for number in range(1, 51, 2):
                await wire.send(
                    call(number, PREDICT) + data(number, b"\0" + (12 << 20).to_bytes(4, "big") + bytes(2000))
                )
                await wire.send(data(number, bytes(16_000)))
            await wire.alive()


@attack("--reader-timeout", "2")
async def windows_of_nothing(found: Arena) -> None:
    """CVE-2019-9517: calls are answered, and there is no window for the answers."""
    async with wired(found.server.address, (4, 0)) as wire:
        await wire.send(*(call(number, INFO) + data(number, enveloped(b""), end=True) for number in range(1, 2001, 2)))
        await asyncio.sleep(3)  # The attack itself: longer than a reader may take, while the victim is counted.
        assert not any(wire.body(number) for number in range(1, 2001, 2))
    async with wired(found.server.address) as wire:
        wire._pump_task.cancel()  # The windows are wide, and nobody reads the socket.
        await wire.send(window(0, 1 << 30))
        await _poured(wire, (call(number, INFO) + data(number, enveloped(b""), end=True) for number in _numbers()))


@attack()
async def strangers_at_the_door(found: Arena) -> None:
    """HTTP/1, TLS, another preface, noise: nobody is kept."""
    strangers = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /statestream.v1.ServerService/GetServerInfo HTTP/1.1\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + settings(),
        PREFACE.lower() + settings(),
        bytes(range(256)) * 8,
        PREFACE + ping(),
        PREFACE + call(1, INFO),
        PREFACE + raw(4, 0, 0, bytes(5)),
    ]
    for stranger in strangers:
        async with wired(found.server.address, greet=False) as wire:
            await wire.send(stranger)
            assert await wire.ended(5) is not None, stranger


@attack()
async def a_preface_byte_by_byte(found: Arena) -> None:
    """Who is only slow is served; who never comes to an end is let go, and costs little meanwhile."""
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(wired(found.server.address, greet=False)) for _ in range(200)]
        for count, wire in enumerate(silent):
            await wire.send(PREFACE[: count % len(PREFACE)])
        slow = await stack.enter_async_context(wired(found.server.address, greet=False))
        for byte in PREFACE + settings() + settings(ack=True) + call(1, INFO) + data(1, enveloped(b""), end=True):
            await slow.send(bytes((byte,)))
            await asyncio.sleep(0.002)
        assert await slow.answered(1)
        assert slow.status(1) == "0"
        if found.ours:
            ends = await asyncio.gather(*(wire.ended(30) for wire in silent))
            assert all(ends), f"{ends.count(None)} of {len(ends)} are kept"


@attack()
async def connections_that_come_and_go(found: Arena) -> None:
    """Thousands of connections: closed at once, reset, left in the middle of a frame, a header block, a message."""
    host, _, port = found.server.address.rpartition(":")
    greeting = PREFACE + settings() + settings(ack=True)
    ends = [
        b"",
        PREFACE[:10],
        greeting,
        greeting + call(1, STREAM),
        greeting + call(1, STREAM)[:20],
        greeting + raw(1, 0, 1, http2.block(http2.headers_of(STREAM))[:30]),
        greeting + call(1, PREDICT) + data(1, b"\0\0\0\1\0half"),
        greeting + b"".join(call(number, STREAM) for number in range(1, 41, 2)),
    ]

    def come_and_go() -> None:
        for count, said in zip(range(800), itertools.cycle(ends), strict=False):
            with socket.create_connection((host, int(port)), timeout=20) as one:
                one.sendall(said)
                if count % 3 == 0:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    await asyncio.to_thread(come_and_go)
    async with wired(found.server.address) as wire:
        await wire.send(call(1, INFO) + data(1, enveloped(b""), end=True))
        assert await wire.answered(1)
        assert wire.status(1) == "0"
