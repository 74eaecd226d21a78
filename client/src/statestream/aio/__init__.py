"""The asyncio twin of `statestream`: the same names, awaited.

    from statestream import aio

    async with aio.connect("localhost:8001") as client:
        async with client.session("sunspots", id="station-7") as session:
            y = await session.step(x)

Many tasks that each await a step share one stream, and their steps as few frames as can be.
"""

from statestream.aio.client import Client
from statestream.aio.connecting import connect
from statestream.aio.owning import local
from statestream.aio.pool import Pool
from statestream.aio.session import Session

__all__ = ["Client", "Pool", "Session", "connect", "local"]
