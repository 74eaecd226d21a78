"""500 devices, a task each: what every one sends has a memory of its own."""

import asyncio
import random

from statestream import aio


async def device(client, number):
    async with client.session("sunspots", id=f"device-{number}") as session:
        for _ in range(10):
            await asyncio.sleep(random.uniform(0, 0.05))
            answer = await session.step([random.uniform(0, 100)])
        return session.position, answer


async def main():
    async with aio.local("models") as client:
        found = await asyncio.gather(*(device(client, number) for number in range(500)))
        print(sum(position for position, _ in found))


asyncio.run(main())
