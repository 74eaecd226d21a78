"""500 sensors, an asyncio task each, on one line; every one has a memory of its own on the server."""

import asyncio
import random
from collections import Counter

from model import write

from statestream import aio

SENSORS, READINGS = 500, 40


async def sensor(number, line):
    """Sends readings at its own pace."""
    noise = random.Random(number)
    for reading in range(READINGS):
        await asyncio.sleep(noise.uniform(0, 0.02))
        celsius = 15 + number % 10 + noise.gauss(0, 0.5)
        if number == 17 and reading == 30:
            celsius += 5
        await line.put((f"sensor-{number}", [celsius]))


async def heard(line):
    """What came, as pairs of an id and a step: as from a broker, or a socket."""
    for _ in range(SENSORS * READINGS):
        yield await line.get()


async def main():
    line, readings, far = asyncio.Queue(), Counter(), []
    async with aio.local("models/running") as client, asyncio.TaskGroup() as sensors:
        for number in range(SENSORS):
            sensors.create_task(sensor(number, line))
        async for id, y in client.feed("running", heard(line)):
            if readings[id] >= 25 and abs(y.item()) > 5:
                far.append(f"{id}, reading {readings[id]}: {y.item():.1f} deviations off")
            readings[id] += 1
        async with client.session("running", id="sensor-17") as session:
            print(f"{len(readings)} sensors; the 17th stands at position {session.position}")
    print(*far, sep="\n")


write("models/running/1")  # Before the loop starts, which would hold Ctrl-C back meanwhile.
asyncio.run(main())
