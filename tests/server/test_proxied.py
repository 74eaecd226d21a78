"""How deploy/haproxy.cfg asks a server whether it serves: in frames of HTTP/2 that it sends as they stand there."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

from tests.support.calls import connected
from tests.support.serving import process
from tests.support.speaker import Speaker, fresh_id

CONFIG = (Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg").read_text()
SENT = [bytes.fromhex(frame) for frame in re.findall(r"tcp-check send-binary (\w+)", CONFIG)]
EXPECTED = bytes.fromhex("000000000208")
"""What stands before the status in the answer: a message as it is, of two bytes, its first field."""
SERVING, NOT_SERVING = 1, 2
HEADERS, DATA, SETTINGS = 1, 0, 4
END_STREAM, END_HEADERS = 1, 4


def frame(data: bytes) -> tuple[int, int, int, bytes]:
    """The type, flags, stream and payload of a frame."""
    length = int.from_bytes(data[:3], "big")
    assert len(data) == 9 + length
    return data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:]


def text(data: bytes, at: int) -> tuple[str, int]:
    """A string of HPACK that is not compressed, and where it ends."""
    return data[at + 1 : at + 1 + data[at]].decode(), at + 1 + data[at]


def headers(block: bytes) -> dict[str, str]:
    """Fields of HPACK, as far as the configuration uses it."""
    indexed = {0x83: (":method", "POST"), 0x86: (":scheme", "http")}
    named = {b"\x04": ":path", b"\x01": ":authority", b"\x0f\x10": "content-type"}
    found, at = dict[str, str](), 0
    while at < len(block):
        if block[at] in indexed:
            name, value = indexed[block[at]]
            at += 1
        elif block[at] == 0:
            name, at = text(block, at + 1)
            value, at = text(block, at)
        else:
            (prefix,) = [one for one in named if block.startswith(one, at)]
            name = named[prefix]
            value, at = text(block, at + len(prefix))
        found[name] = value
    return found


def test_it_is_a_call_of_the_health_check_for_the_whole_server() -> None:
    preface, settings, head, data = SENT
    assert preface == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert frame(settings) == (SETTINGS, 0, 0, b"")
    kind, flags, stream, block = frame(head)
    assert (kind, flags, stream) == (HEADERS, END_HEADERS, 1)
    assert headers(block) == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": "haproxy",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    assert frame(data) == (DATA, END_STREAM, 1, bytes(5))


async def status(address: str) -> int:
    """What a server answers to it."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"".join(SENT))
        answer = b""
        while EXPECTED not in answer[:-1]:
            more = await reader.read(4096)
            assert more, answer
            answer += more
        return answer[answer.index(EXPECTED) + len(EXPECTED)]
    finally:
        writer.close()


async def test_a_server_answers_it_and_says_so_when_it_leaves(models_dir: Path, tmp_path: Path) -> None:
    with process(models_dir, "--store", f"sqlite:{tmp_path / 's.db'}") as server:
        assert await status(server.address) == SERVING
        async with connected(server.address) as channel, Speaker(channel, "counter") as speaker:
            await speaker.open(fresh_id())
            server.signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                while await status(server.address) != NOT_SERVING:
                    pass
                await speaker.go_away.wait()
