"""docs/how-to/mqtt.md over a broker: what is published goes through `client.feed`, each topic in its order."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from statestream import aio
from tests.services import require_binary
from tests.support import pages
from tests.support.pages import ROOT

PAGE = "docs/how-to/mqtt.md"
MINE = "tests/docs/test_mqtt_page.py::test_over_a_broker"
SENSORS, READINGS = 10, 5


def free_port() -> int:
    """mosquitto picks none by itself."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.service
async def test_over_a_broker(tmp_path: Path) -> None:
    aiomqtt = pytest.importorskip("aiomqtt")
    program, port = require_binary("mosquitto"), free_port()
    (tmp_path / "broker.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    names: dict[str, Any] = {}
    exec(pages.run_by(PAGE, MINE).text, names)
    broker = await asyncio.create_subprocess_exec(program, "-c", str(tmp_path / "broker.conf"), stderr=-1)
    try:
        assert broker.stderr is not None
        async with asyncio.timeout(10):
            while b"running" not in await broker.stderr.readline():
                pass
        async with (
            aiomqtt.Client("127.0.0.1", port) as sensors,
            aio.local(str(ROOT / "deploy/models/sunspots")) as client,
            aclosing(names["over_mqtt"]("127.0.0.1", port)) as messages,
        ):
            first = asyncio.ensure_future(anext(messages))
            while not first.done():  # Until the page's program has subscribed, nobody hears.
                await sensors.publish("sensors/probe/reading", b"1", qos=1)
                await asyncio.wait([first], timeout=0.1)
            for reading in range(READINGS):
                for sensor in range(SENSORS):
                    await sensors.publish(f"sensors/{sensor}/reading", b"%d" % (10 * reading + sensor), qos=1)
            heard: dict[str, list[float]] = {}
            async with aclosing(client.feed("sunspots", messages)) as answers:  # type: ignore[type-var]
                async for topic, expected in answers:
                    heard.setdefault(topic, []).append(expected.item())
                    if (
                        sum(map(len, heard.values())) - len(heard.get("sensors/probe/reading", []))
                        == SENSORS * READINGS
                    ):
                        break
            heard.pop("sensors/probe/reading", None)
            assert {len(each) for each in heard.values()} == {READINGS}
            async with client.session("sunspots") as session:
                wanted = [(await session.step([10.0 * reading + 7])).item() for reading in range(READINGS)]
            assert heard["sensors/7/reading"] == wanted
    finally:
        broker.kill()
        await broker.wait()
