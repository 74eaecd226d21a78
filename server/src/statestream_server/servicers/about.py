"""ServerService: what this server is."""

from __future__ import annotations

import dataclasses

import statestream_server
from statestream.v1 import server_pb2 as pb
from statestream.v1 import server_pb2_grpc as grpc_stubs
from statestream_server.server import Server
from statestream_server.servicers import wire
from statestream_server.servicers.failures import Context, unary

PROTOCOL = 1


class ServerServicer(grpc_stubs.ServerServiceServicer):
    """Tells version, limits, durability and device."""

    def __init__(self, server: Server) -> None:
        """Tells of `server`."""
        self._server = server

    @unary
    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """Tells what this server is."""
        server, survives = self._server, self._server.store.survives
        return pb.GetServerInfoResponse(
            version=statestream_server.__version__,
            protocol=PROTOCOL,
            server_id=server.id,
            limits=pb.Limits(**dataclasses.asdict(server.settings.limits)),
            durability=wire.durability(server.settings),
            store=pb.StoreInfo(
                kind=server.store.kind,
                survives_process_kill=survives.process_kill,
                survives_power_loss=survives.power_loss,
                survives_failover=survives.failover,
            ),
            device=server.device,
            fingerprint=server.fingerprint,
            draining=server.sessions.draining,
        )
