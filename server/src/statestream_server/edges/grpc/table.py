"""The table of methods that every gRPC edge serves: all services behind one chain, their health, connected clients."""

from __future__ import annotations

import asyncio
from typing import Final

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from statestream.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from statestream_server.edges.grpc.about import ServerServicer
from statestream_server.edges.grpc.caps import Caps
from statestream_server.edges.grpc.chain import Chain
from statestream_server.edges.grpc.decoding import requests_of
from statestream_server.edges.grpc.inference import InferenceServicer
from statestream_server.edges.grpc.model import ModelServicer
from statestream_server.edges.grpc.predicting import Predicting
from statestream_server.edges.grpc.readers import Readers
from statestream_server.edges.grpc.session import SessionServicer
from statestream_server.edges.grpc.steps import Steps
from statestream_server.edges.grpc.stream import Stream
from statestream_server.server import Readiness, Server
from statestream_server.settings import Settings

_SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (inference_pb2, "InferenceService"),
        (session_pb2, "SessionService"),
        (model_pb2, "ModelService"),
        (server_pb2, "ServerService"),
    )
)
_DESCRIBED: Final = (inference_pb2, session_pb2, model_pb2, server_pb2, health_pb2)

_OIP: Final = "inference.GRPCInferenceService"
_REFLECTION: Final = "grpc.reflection.v1alpha.ServerReflection"

_APART: Final = 0.04
"""Seconds between two streams that are told to leave, where there is time for it."""


class Methods:
    """The methods of a server. What lies under them, a port, is a class of its own over this one."""

    def __init__(self, settings: Settings, server: Server, readiness: Readiness) -> None:
        """All methods; nobody is answered yet. `readiness` says whether callers may be sent here."""
        self._streams = set[Stream]()
        self._checks = health.aio.HealthServicer()
        self.chain = self._chain(settings, server, readiness)

    def _chain(self, settings: Settings, server: Server, readiness: Readiness) -> Chain:
        readers, caps = Readers(settings.reader_timeout), Caps(settings.limits)
        budgets, inference = server.budgets, _SERVICES[0]
        kinds = requests_of(*_DESCRIBED)
        chain = Chain(
            kinds,
            caps,
            readers,
            {
                f"/{inference}/Step": budgets.steps,
                f"/{inference}/Predict": budgets.predictions,
                f"/{inference}/Forecast": budgets.forecasts,
                f"/{_OIP}/ModelInfer": budgets.steps,
            },
            server.requests,
            server.tracing,
        )
        steps = Steps(server)
        chain.direct[f"/{inference}/Step"] = steps.take
        chain.raw.add(f"/{inference}/Stream")
        chain.direct[f"/{inference}/Predict"] = Predicting(server).take
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(server, self._streams, steps, caps, readers), chain
        )
        session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(server), chain)
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(server), chain)
        server_pb2_grpc.add_ServerServiceServicer_to_server(ServerServicer(server), chain)
        health_pb2_grpc.add_HealthServicer_to_server(self._checks, chain)

        def add_oip() -> None:
            from statestream_server.edges.grpc import oip

            kinds[oip.SERVICE] = oip.requests()
            oip.register(oip.OipServicer(server, readiness, caps, readers), chain)

        def add_reflection() -> None:
            from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

            from statestream_server.edges.grpc import reflecting

            kinds.update(requests_of(reflection_pb2))
            names = [*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
            files = [module.DESCRIPTOR for module in (*_DESCRIBED, reflection_pb2)]
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting.servicer(names, files), chain)

        chain.add_later(_OIP, add_oip)
        chain.add_later(_REFLECTION, add_reflection)
        return chain

    async def serving(self) -> None:
        """Has health checks say that it answers."""
        for service in ("", *_SERVICES):
            await self._checks.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def leaving(self) -> None:
        """Has health checks say that nobody should come any more."""
        await self._checks.enter_graceful_shutdown()

    async def send_away(self, grace: float, most: float) -> None:
        """Tells connected clients, one after the other, that they have `grace` seconds to leave.

        All who come to another server at once wait there for each other, while it has the steps of those that are in
        already. Who is not told yet is served here.

        Args:
            grace: Seconds that each of them has, at least.
            most: Seconds until all are told.
        """
        streams = [*self._streams]
        for number, stream in enumerate(streams):
            if number:
                await asyncio.sleep(min(_APART, most / len(streams)))
            if not stream.ended.is_set():
                stream.leave(grace)

    async def gone(self, seconds: float) -> None:
        """Returns when the clients that are connected now have left, or after so many seconds."""
        waits = [asyncio.create_task(stream.ended.wait()) for stream in self._streams]
        if waits:
            _, left = await asyncio.wait(waits, timeout=seconds)
            for task in left:
                task.cancel()
