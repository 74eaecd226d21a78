"""What fails: servers that are killed, leave, or stop; networks that break or fall silent; a store that is away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.plan import Fault

if TYPE_CHECKING:
    from tests.simulation.world import World


class Faults:
    """Does what a plan says, each fault in its time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop

    async def run(self, fault: Fault) -> None:
        """One fault, from its begin to its end."""
        await asyncio.sleep(fault.at)
        self._loop.trace("fault", fault.kind, fault.target)
        self._world.oracle.disturb(self._loop.time(), fault.seconds + 1.0)
        await getattr(self, fault.kind)(fault)

    def heal(self) -> None:
        """Everything is as it should be."""
        world = self._world
        for weather in world.network.weather.values():
            weather.silent = weather.closed = False
        for connection in [*world.network.connections]:
            if connection.held:
                # Such a connection has no future: whoever waits on it is to hear of it.
                connection.release(whole=False)
                connection.cut()
        world.shelf.failing, world.shelf.paused_until = 0.0, 0.0
        world.shelf.slow = world.plan.slow_store

    async def crash(self, fault: Fault) -> None:
        """kill -9; another process takes its place after a while."""
        replica = self._world.replicas[fault.target]
        replica.kill()
        await asyncio.sleep(fault.seconds)
        replica.start()

    async def crash_within(self, fault: Fault) -> None:
        """The same after so many more of its callbacks."""
        replica = self._world.replicas[fault.target]
        if replica.process.alive:
            replica.process.doomed = 1 + int(fault.number * 120)
            await asyncio.sleep(fault.seconds)
            if not replica.process.alive:
                replica.start()

    async def drain(self, fault: Fault) -> None:
        """SIGTERM; another takes its place."""
        replica = self._world.replicas[fault.target]
        if replica.process.alive:
            await replica.leave()
            await asyncio.sleep(fault.seconds)
            replica.start()

    async def cut(self, fault: Fault) -> None:
        """Connections to a server break."""
        address = self._world.replicas[fault.target].address
        self._world.network.cut(lambda connection: connection.server.address == address)

    async def silence(self, fault: Fault) -> None:
        """Connections to a server fall silent; in the end all that was on its way comes, or nothing does."""
        network, address = self._world.network, self._world.replicas[fault.target].address
        there = [connection for connection in network.connections if connection.server.address == address]
        ways = {id(connection.weather): connection.weather for connection in there}
        for weather in ways.values():
            weather.silent = True
        await asyncio.sleep(fault.seconds * (1 + 4 * fault.number))
        for weather in ways.values():
            weather.silent = False
        for connection in there:
            connection.release(whole=fault.number < 0.6)
            if fault.number > 0.3:
                connection.cut()

    async def refuse(self, fault: Fault) -> None:
        """New connections to a server are refused."""
        network, address = self._world.network, self._world.replicas[fault.target].address
        ways = [weather for (_, where), weather in network.weather.items() if where == address]
        for weather in ways:
            weather.closed = True
        network.cut(lambda connection: connection.server.address == address)
        await asyncio.sleep(fault.seconds)
        for weather in ways:
            weather.closed = False

    async def slow(self, fault: Fault) -> None:
        """Messages take long."""
        for weather in self._world.network.weather.values():
            weather.slow = fault.number
        await asyncio.sleep(fault.seconds)
        for weather in self._world.network.weather.values():
            weather.slow = self._world.plan.slow_network

    async def store_fails(self, fault: Fault) -> None:
        """The store fails now and then, before or after it did what was asked."""
        self._world.shelf.failing = 0.1 + 0.9 * fault.number
        await asyncio.sleep(fault.seconds)
        self._world.shelf.failing = 0.0

    async def store_pauses(self, fault: Fault) -> None:
        """The store stands still, and does later what it was asked."""
        self._world.shelf.paused_until = self._loop.time() + fault.seconds
        await asyncio.sleep(fault.seconds)

    async def store_slow(self, fault: Fault) -> None:
        """The store takes long."""
        self._world.shelf.slow = 0.05 + fault.number
        await asyncio.sleep(fault.seconds)
        self._world.shelf.slow = self._world.plan.slow_store

    async def clock(self, fault: Fault) -> None:
        """A server's wall clock jumps, up to half an hour."""
        self._world.replicas[fault.target].ahead = (fault.number - 0.5) * 3600
        self._world.replicas[fault.target].process.ahead = (fault.number - 0.5) * 3600

    async def client_clock(self, fault: Fault) -> None:
        """A client's wall clock, which orders its claims, jumps as far."""
        client = self._world.clients.get(fault.target)
        if client is not None:
            client.process.ahead = (fault.number - 0.5) * 3600  # Against a server's never more than it takes.

    async def stop(self, fault: Fault) -> None:
        """A server stops for a while, or its machine is suspended."""
        replica = self._world.replicas[fault.target]
        if replica.process.alive:
            replica.process.stall(fault.seconds * 2)
            if fault.number < 0.5:
                replica.process.slept += fault.seconds * 2

    async def client_dies(self, fault: Fault) -> None:
        """A client is killed with all its callers."""
        client = self._world.clients.get(fault.target)
        if client is not None:
            client.process.kill()
            self._world.network.lost(client.process)
