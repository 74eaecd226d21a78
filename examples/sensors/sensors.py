"""500 sensors, an asyncio task each; every one has a memory of its own on the server."""

import asyncio
import random

from model import write

from statestream import aio

SENSORS, READINGS = 500, 40


async def sensor(client, number):
    """Sends readings at its own pace; returns which of them were far from what this sensor usually says."""
    noise, far = random.Random(number), []
    async with client.session("running", id=f"sensor-{number}") as session:
        for reading in range(READINGS):
            await asyncio.sleep(noise.uniform(0, 0.02))
            celsius = 15 + number % 10 + noise.gauss(0, 0.5)
            if number == 17 and reading == 30:
                celsius += 5
            score = (await session.step([celsius])).item()
            if reading >= 25 and abs(score) > 5:
                far.append((number, reading, round(score, 1)))
    return far


async def main():
    write("models/running/1")
    async with aio.local("models/running") as client:
        found = await asyncio.gather(*(sensor(client, number) for number in range(SENSORS)))
        async with client.session("running", id="sensor-17") as session:
            print(f"{SENSORS} sensors; the 17th stands at position {session.position}")
    for far in found:
        for number, reading, score in far:
            print(f"sensor {number}, reading {reading}: {score} deviations off")


asyncio.run(main())
