"""SessionService: sessions as things to open, look at, copy, keep and delete."""

from __future__ import annotations

from statestream.contract import errors
from statestream.v1 import session_pb2 as pb
from statestream.v1 import session_pb2_grpc as grpc_stubs
from statestream_server import caller
from statestream_server.edges.grpc import wire
from statestream_server.edges.grpc.failures import Context
from statestream_server.server import Server
from statestream_server.sessions.admin.descriptions import Description, page_behind, page_token
from statestream_server.stores.base import Key

_Request = (
    pb.OpenSessionRequest
    | pb.GetSessionRequest
    | pb.ForkSessionRequest
    | pb.SnapshotSessionRequest
    | pb.RestoreSessionRequest
    | pb.FlushSessionRequest
    | pb.DeleteSessionRequest
)
_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1000


class SessionServicer(grpc_stubs.SessionServiceServicer):
    """Opens, describes, lists, forks, snapshots, restores, flushes and deletes sessions."""

    def __init__(self, server: Server) -> None:
        """Calls go to the server's rooms."""
        self._admin, self._sessions = server.admin, server.sessions

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        """Opens a session for callers of Step."""
        mode = wire.open_mode(request.mode)
        states = None
        if request.initial_states:
            table = await self._sessions.table(request.model, request.version, request.alias)
            states = wire.initial_states(table, request.initial_states, 1)
        described, created = await self._admin.open(
            _key(request),
            request.version,
            mode,
            upgrade=request.upgrade,
            initial_states=states,
            alias=request.alias,
        )
        return pb.OpenSessionResponse(session=_message(described), created=created)

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        """Describes a session."""
        described = await self._admin.describe(_key(request))
        return pb.GetSessionResponse(session=_message(described))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """Lists sessions, a page at a time."""
        if request.page_size > _LARGEST_PAGE:
            raise errors.BadFrame(
                f"page_size is {request.page_size}; expected at most {_LARGEST_PAGE}", metadata={"field": "page_size"}
            )
        size = request.page_size or _DEFAULT_PAGE
        tenant, after = caller.current.get().tenant, _page_behind(request.page_token)
        found = await self._admin.page(tenant, request.model, after, size)
        token = page_token(found[-1]) if len(found) == size else ""
        return pb.ListSessionsResponse(sessions=[_message(each) for each in found], next_page_token=token)

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Context) -> pb.ForkSessionResponse:
        """Copies a session."""
        made = await self._admin.fork(_key(request), request.fork_id, ephemeral=request.ephemeral, epoch=request.epoch)
        return pb.ForkSessionResponse(session=_message(made))

    async def SnapshotSession(self, request: pb.SnapshotSessionRequest, context: Context) -> pb.SnapshotSessionResponse:
        """Reads a session out."""
        data, position = await self._admin.snapshot(_key(request), request.epoch)
        return pb.SnapshotSessionResponse(snapshot=data, position=position)

    async def RestoreSession(self, request: pb.RestoreSessionRequest, context: Context) -> pb.RestoreSessionResponse:
        """Makes a session of a snapshot."""
        made = await self._admin.restore(
            _key(request), request.snapshot, request.version, request.alias, upgrade=request.upgrade
        )
        return pb.RestoreSessionResponse(session=_message(made))

    async def FlushSession(self, request: pb.FlushSessionRequest, context: Context) -> pb.FlushSessionResponse:
        """Makes a session durable."""
        durable = await self._admin.flush(_key(request))
        return pb.FlushSessionResponse(durable_position=durable)

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Context) -> pb.DeleteSessionResponse:
        """Deletes a session."""
        await self._admin.delete(_key(request))
        return pb.DeleteSessionResponse()


def _key(request: _Request) -> Key:
    return caller.key(request.model, request.session_id)


def _message(described: Description) -> pb.Session:
    message = pb.Session(
        model=described.key.model,
        version=described.version,
        id=described.key.id,
        position=described.position,
        durable_position=described.durable,
        epoch=described.epoch,
        residence=pb.RESIDENCE_RESIDENT if described.resident else pb.RESIDENCE_STORED,
        ephemeral=described.ephemeral,
        origin=described.origin,
        cursor=described.cursor,
    )
    message.last_used_time.FromNanoseconds(int(described.used * 1e9))
    return message


def _page_behind(token: str) -> tuple[str, str]:
    try:
        return page_behind(token)
    except ValueError as error:
        raise errors.BadFrame(
            "page_token was not made by this service; start with the first page", metadata={"field": "page_token"}
        ) from error
