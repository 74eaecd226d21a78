"""Windows of streams that bring long messages: they stay as wide as some of those, within bounds."""

from __future__ import annotations

import numpy as np
from hyperframe.frame import WindowUpdateFrame

from statestream.v1 import inference_pb2 as pb
from statestream_server.edges.h2 import floods
from tests.support import http2
from tests.support.arrays import tensor
from tests.support.http2 import STREAM, Wire, enveloped, wired
from tests.support.serving import Process


def long_message(frame: int, size: int) -> bytes:
    """A frame about `size` bytes of rows of a model."""
    x = np.zeros((size // 16, 4), np.float32)
    return enveloped(pb.StreamRequest(frame=frame, predict=pb.PredictFrame(model="scores", inputs=[tensor("x", x)])))


def granted(wire: Wire, stream: int) -> int:
    """Bytes that may come on a stream, as if none had."""
    found = wire.of(WindowUpdateFrame, stream)
    return floods.STREAM_WINDOW + sum(one.window_increment for one in found if isinstance(one, WindowUpdateFrame))


async def said(wire: Wire, stream: int, message: bytes, sent: int) -> int:
    """Sends a message as the windows allow; the bytes sent on the stream so far."""
    at = 0
    while at < len(message):
        assert await wire.until(lambda sent=sent: granted(wire, stream) > sent)  # type: ignore[misc]
        size = min(granted(wire, stream) - sent, len(message) - at, 16_384)
        await wire.send(http2.data(stream, message[at : at + size]))
        at, sent = at + size, sent + size
    return sent


async def test_a_stream_that_had_a_long_message_need_not_ask_again(server: Process) -> None:
    message = long_message(1, 200_000)
    async with wired(server.address) as wire:
        await wire.send(http2.window(0, 1 << 30), http2.call(1, STREAM), http2.window(1, 1 << 30))
        sent = await said(wire, 1, message, 0)
        # Some more such messages may come at once, and no more than a few.
        assert await wire.until(lambda: granted(wire, 1) - sent > 3 * len(message))
        assert await wire.alive()
        assert granted(wire, 1) - sent <= floods.STREAM_WINDOW + 4 * len(message)
        before = granted(wire, 1)
        for frame in (2, 3, 4):
            part = long_message(frame, 200_000)
            for at in range(0, len(part), 16_384):
                await wire.send(http2.data(1, part[at : at + 16_384]))
            sent += len(part)
        assert await wire.until(lambda: len(http2.messages(wire.body(1))) >= 4)
        assert wire.reset_of(1) is None
        assert granted(wire, 1) > before
        assert granted(wire, 1) - sent <= floods.STREAM_WINDOW + 4 * len(message)


async def test_all_streams_of_a_connection_share_what_such_windows_are(server: Process) -> None:
    """A stream that finds nothing left asks for each message; one that ends leaves its room to others."""
    message = long_message(1, 1_200_000)
    async with wired(server.address) as wire:
        await wire.send(http2.window(0, 1 << 30))
        sent = dict[int, int]()
        for stream in (1, 3, 5, 7, 9):
            await wire.send(http2.call(stream, STREAM), http2.window(stream, 1 << 30))
            sent[stream] = await said(wire, stream, message, 0)
            assert await wire.until(lambda stream=stream: len(wire.body(stream)) > 0)  # type: ignore[misc]
        assert await wire.alive()
        wide = [stream for stream in sent if granted(wire, stream) - sent[stream] > floods.WIDE // 2]
        assert wide == [1, 3, 5, 7]
        await wire.send(http2.reset(1))
        sent[9] = await said(wire, 9, long_message(2, 1_200_000), sent[9])
        assert await wire.until(lambda: granted(wire, 9) - sent[9] > floods.WIDE // 2)
