"""Calls beside the stream as values: the method, the request, and what its answer means. The twins make them.

All of them are idempotent, so that one which was not answered can be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from statestream import arguments, calls, views
from statestream.contract import protocol
from statestream.layout import Layout
from statestream.v1 import (
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from statestream.v1.server_pb2 import Limits

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[T]):
    """One call, whose answer is had as a whole.

    Attributes:
        method: The method of a stub on a channel, of gRPC's synchronous or asyncio kind.
        request: What is sent.
        read: What the answer means.
    """

    method: Callable[[Any], Callable[..., Any]]
    request: Message
    read: Callable[[Any], T]


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[T]):
    """One call, whose answer is had as it comes.

    Attributes:
        method: As of a UnaryCall.
        request: What is sent.
        read: The items of one message. Another try brings the same items, if not in the same messages.
        again: Told before another try how many items came; says how many of them come once more. All where it is None.
    """

    method: Callable[[Any], Callable[..., Any]]
    request: Message
    read: Callable[[Any], Sequence[T]]
    again: Callable[[int], int] | None = None


# ── models ─────────────────────────────────────────────────────────────────────────────────────────


def list_models() -> UnaryCall[list[views.Model]]:
    """Every loaded version of every model, and those that failed to load."""
    return UnaryCall(
        lambda channel: model_pb2_grpc.ModelServiceStub(channel).ListModels,
        model_pb2.ListModelsRequest(),
        lambda response: [views.read_model(model) for model in response.models],
    )


def get_layout(name: str, version: int | str | None) -> UnaryCall[Layout]:
    """The inputs and outputs of a version; of the default one without."""
    return UnaryCall(
        lambda channel: model_pb2_grpc.ModelServiceStub(channel).GetModel,
        model_pb2.GetModelRequest(name=name, **arguments.naming(version)),
        lambda response: Layout(views.read_model(response.model)),
    )


def load_model(name: str, version: int | str | None) -> UnaryCall[views.Model]:
    """Loads a version; the highest without."""
    arguments.check_model(name, version)
    return UnaryCall(
        lambda channel: model_pb2_grpc.ModelServiceStub(channel).LoadModel,
        model_pb2.LoadModelRequest(name=name, **arguments.naming(version)),
        lambda response: views.read_model(response.model),
    )


def unload_model(name: str, version: int | str | None) -> UnaryCall[None]:
    """Unloads a version; every loaded one without."""
    arguments.check_model(name, version)
    return UnaryCall(
        lambda channel: model_pb2_grpc.ModelServiceStub(channel).UnloadModel,
        model_pb2.UnloadModelRequest(name=name, **arguments.naming(version)),
        lambda response: None,
    )


def set_alias(name: str, alias: str, version: int | None) -> UnaryCall[dict[str, int]]:
    """Has an alias name a version, or takes it away without one; the model's aliases then."""
    arguments.check_model(name)
    arguments.check_alias("alias", alias)
    number = 0 if version is None else arguments.check_whole("version", version, most=arguments.MOST_VERSIONS)
    return UnaryCall(
        lambda channel: model_pb2_grpc.ModelServiceStub(channel).SetAlias,
        model_pb2.SetAliasRequest(name=name, alias=alias, version=number),
        lambda response: dict(sorted(response.aliases.items())),
    )


# ── the server ─────────────────────────────────────────────────────────────────────────────────────


@cache
def server_info_request() -> server_pb2.GetServerInfoRequest:
    """Asks what a server is, and says what this client speaks."""
    return server_pb2.GetServerInfoRequest(
        protocol=protocol.NEWEST, oldest_protocol=protocol.OLDEST, client=f"statestream {version('statestream')}"
    )


def get_server() -> UnaryCall[views.ServerInfo]:
    """Version, limits, durability and device."""
    return UnaryCall(
        lambda channel: server_pb2_grpc.ServerServiceStub(channel).GetServerInfo,
        server_info_request(),
        views.read_server,
    )


def list_quarantine() -> UnaryCall[list[views.Suspect]]:
    """What is suspected of having ended servers."""
    return UnaryCall(
        lambda channel: server_pb2_grpc.ServerServiceStub(channel).ListQuarantine,
        server_pb2.ListQuarantineRequest(),
        lambda response: [views.read_suspect(one) for one in response.suspects],
    )


def free_quarantined(name: str) -> UnaryCall[views.Suspect]:
    """Lets work run again that is in quarantine."""
    arguments.check_text("name", name)
    return UnaryCall(
        lambda channel: server_pb2_grpc.ServerServiceStub(channel).FreeQuarantined,
        server_pb2.FreeQuarantinedRequest(name=name),
        lambda response: views.read_suspect(response.freed),
    )


def move_sessions(share: float, model: str | None) -> UnaryCall[views.MoveAsked]:
    """Asks connected clients to take a share of their sessions elsewhere."""
    arguments.check_share(share)
    if model is not None:
        arguments.check_text("model", model)
    return UnaryCall(
        lambda channel: server_pb2_grpc.ServerServiceStub(channel).MoveSessions,
        server_pb2.MoveSessionsRequest(share=share, model=model or ""),
        lambda response: views.MoveAsked(response.sessions, response.streams),
    )


def get_statistics() -> UnaryCall[views.Statistics]:
    """What the engine did since the process started."""
    return UnaryCall(
        lambda channel: server_pb2_grpc.ServerServiceStub(channel).GetStatistics,
        server_pb2.GetStatisticsRequest(),
        views.read_statistics,
    )


# ── sessions ───────────────────────────────────────────────────────────────────────────────────────


def list_sessions(model: str | None, page: str, size: int = 1000) -> UnaryCall[tuple[list[views.SessionInfo], str]]:
    """Sessions of a model, or of all, and what the next page is called; "" for the first, and behind the last."""
    return UnaryCall(
        lambda channel: session_pb2_grpc.SessionServiceStub(channel).ListSessions,
        session_pb2.ListSessionsRequest(model=model or "", page_size=size, page_token=page),
        lambda response: ([views.read_session(each) for each in response.sessions], response.next_page_token),
    )


def get_session(model: str, session_id: str) -> UnaryCall[views.SessionInfo]:
    """A session as the server sees it."""
    return UnaryCall(
        lambda channel: session_pb2_grpc.SessionServiceStub(channel).GetSession,
        session_pb2.GetSessionRequest(model=model, session_id=session_id),
        lambda response: views.read_session(response.session),
    )


def delete_session(model: str, session_id: str) -> UnaryCall[None]:
    """Deletes a session, whoever has it open."""
    return UnaryCall(
        lambda channel: session_pb2_grpc.SessionServiceStub(channel).DeleteSession,
        session_pb2.DeleteSessionRequest(model=model, session_id=session_id),
        lambda response: None,
    )


def fork(model: str, session_id: str, fork_id: str, *, ephemeral: bool) -> UnaryCall[None]:
    """Copies a session as it stands."""
    arguments.check_id(fork_id)
    return UnaryCall(
        lambda channel: session_pb2_grpc.SessionServiceStub(channel).ForkSession,
        session_pb2.ForkSessionRequest(model=model, session_id=session_id, fork_id=fork_id, ephemeral=ephemeral),
        lambda response: None,
    )


def snapshot(model: str, session_id: str) -> UnaryCall[bytes]:
    """A session as bytes."""
    return UnaryCall(
        lambda channel: session_pb2_grpc.SessionServiceStub(channel).SnapshotSession,
        session_pb2.SnapshotSessionRequest(model=model, session_id=session_id),
        lambda response: bytes(response.snapshot),
    )


def restore(
    model: str, session_id: str, blob: bytes, version: int | str | None, upgrade: int | str | bool | None
) -> UnaryCall[int]:
    """Makes a session of bytes; the answer is its version.

    Raises:
        TypeError: These are no bytes, or no versions.
        ValueError: `upgrade` and `version` do not go together.
    """
    version, moves = arguments.wanted_version(version, upgrade)
    return UnaryCall(
        lambda channel: session_pb2_grpc.SessionServiceStub(channel).RestoreSession,
        session_pb2.RestoreSessionRequest(
            model=model,
            session_id=session_id,
            **arguments.naming(version),
            snapshot=arguments.check_snapshot(blob),
            upgrade=moves,
        ),
        lambda response: int(response.session.version),
    )


# ── without a session ──────────────────────────────────────────────────────────────────────────────


def predict(
    layout: Layout, x: Any, outputs: Sequence[str] | None, version: int | str | None, limits: Limits
) -> UnaryCall[Any]:
    """One run of a model without memory.

    Raises:
        BadTensor: The input does not fit the model, or is larger than the server takes.
    """
    request = calls.predict_request(layout, x, outputs, version)
    calls.check_size(request, limits, layout)
    return UnaryCall(
        lambda channel: inference_pb2_grpc.InferenceServiceStub(channel).Predict,
        request,
        lambda response: calls.read_outputs(response.outputs),
    )
