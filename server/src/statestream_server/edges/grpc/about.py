"""ServerService: what this server is, and what its engine did."""

from __future__ import annotations

import dataclasses
import logging

import statestream_server
from statestream.contract import errors, protocol
from statestream.v1 import server_pb2 as pb
from statestream.v1 import server_pb2_grpc as grpc_stubs
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.failures import Context
from statestream_server.engine.scheduler import Why
from statestream_server.quarantine.quarantine import Suspicion, name_of
from statestream_server.server import Server
from statestream_server.settings import Durability

_MOST_SUSPECTS = 1000
_log = logging.getLogger(__name__)


class ServerServicer(grpc_stubs.ServerServiceServicer):
    """Tells version, limits, durability, device and statistics."""

    def __init__(self, server: Server) -> None:
        """Tells of `server`."""
        self._server = server

    async def GetStatistics(self, request: pb.GetStatisticsRequest, context: Context) -> pb.GetStatisticsResponse:
        """Tells what the engine did."""
        engine = self._server.engine
        found = engine.statistics
        return pb.GetStatisticsResponse(
            batches=found.batches,
            rows=found.rows,
            steps=found.steps,
            failed_chunks=found.failed,
            model_seconds=found.seconds,
            threaded_batches=found.threaded,
            batches_by_reason={why.name.lower(): found.why[why] for why in Why},
            batches_by_size=found.sizes,
            batches_by_wait=found.waits,
            classes={
                priority.name.lower(): pb.ClassShare(batches=share.batches, seconds=share.seconds)
                for priority, share in engine.scheduler.had.items()
            },
            queued_chunks=engine.queued,
        )

    async def ListQuarantine(self, request: pb.ListQuarantineRequest, context: Context) -> pb.ListQuarantineResponse:
        """Tells what is suspected of having ended servers."""
        found = sorted(self._server.quarantine, key=lambda one: not one[1].quarantined)[:_MOST_SUSPECTS]
        return pb.ListQuarantineResponse(suspects=[_suspect(name_of(work), known) for work, known in found])

    async def FreeQuarantined(self, request: pb.FreeQuarantinedRequest, context: Context) -> pb.FreeQuarantinedResponse:
        """Lets work run again."""
        known = self._server.quarantine.free(request.name)
        if known is None:
            raise errors.NotFound(
                f"nothing in quarantine is called {errors.quoted(request.name)}; ListQuarantine tells the names"
            )
        return pb.FreeQuarantinedResponse(freed=_suspect(request.name, known))

    async def MoveSessions(self, request: pb.MoveSessionsRequest, context: Context) -> pb.MoveSessionsResponse:
        """Asks streams to take sessions elsewhere."""
        server = self._server
        if not 0 < request.share <= 1:
            raise errors.BadFrame(
                f"share is {request.share:g}; expected more than 0, at most 1", metadata={"field": "share"}
            )
        if server.settings.durability is Durability.NONE:
            raise errors.Unsupported(
                "durability is none: nothing of a session is stored, so no other server could go on with it"
            )
        tables = server.registry.tables(request.model) if request.model else server.checkpointer.tables()
        asked = server.moves.ask(tables, request.share)
        return pb.MoveSessionsResponse(sessions=asked.sessions, streams=asked.streams)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """Tells what this server is, to a client that speaks a version of the protocol that it speaks, too."""
        spoken = protocol.agreed(request.protocol, request.oldest_protocol)
        _log.debug("asked by %s, with version %d of the protocol", request.client or "a client", spoken)
        server, survives = self._server, self._server.store.survives
        return pb.GetServerInfoResponse(
            version=statestream_server.__version__,
            protocol=spoken,
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


def _suspect(name: str, known: Suspicion) -> pb.Suspect:
    return pb.Suspect(
        name=name,
        what=known.what,
        deaths=known.deaths,
        crashes=known.crashes,
        since=known.since,
        quarantined=known.quarantined,
    )
