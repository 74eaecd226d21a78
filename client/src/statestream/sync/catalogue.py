"""What a synchronous client can ask about a server, its models and its sessions."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from statestream.layout import Layout, require_kind
from statestream.sync.link import Link
from statestream.v1 import (
    model_pb2,
    model_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from statestream.views import (
    Model,
    ServerInfo,
    SessionInfo,
    Statistics,
    read_model,
    read_server,
    read_session,
    read_statistics,
)


class Catalogue:
    """The part of a client that looks at what there is."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._layouts: dict[tuple[str, int], Layout] = {}
        self._fetching = threading.Lock()

    def models(self) -> list[Model]:
        """Every loaded version of every model, and those that failed to load."""
        request = model_pb2.ListModelsRequest()
        response = self._link.unary(
            lambda channel: model_pb2_grpc.ModelServiceStub(channel).ListModels(request, metadata=self._link.metadata)
        )
        return [read_model(model) for model in response.models]

    def load_model(self, name: str, version: int | None = None) -> Model:
        """Loads a version from the server's models folder; the highest where left out."""
        request = model_pb2.LoadModelRequest(name=name, version=version or 0)
        response = self._link.unary(
            lambda channel: model_pb2_grpc.ModelServiceStub(channel).LoadModel(request, metadata=self._link.metadata)
        )
        self._layouts.clear()
        return read_model(response.model)

    def unload_model(self, name: str, version: int | None = None) -> None:
        """Unloads a version; every loaded one where left out.

        Raises:
            ModelInUse: It has open sessions.
        """
        request = model_pb2.UnloadModelRequest(name=name, version=version or 0)
        self._link.unary(
            lambda channel: model_pb2_grpc.ModelServiceStub(channel).UnloadModel(request, metadata=self._link.metadata)
        )
        self._layouts.clear()

    def list_sessions(self, model: str | None = None) -> Iterator[SessionInfo]:
        """The sessions on the server, by model, then id."""
        request = session_pb2.ListSessionsRequest(model=model or "", page_size=1000)
        while True:
            response = self._link.unary(
                lambda channel: session_pb2_grpc.SessionServiceStub(channel).ListSessions(
                    request, metadata=self._link.metadata
                )
            )
            for session in response.sessions:
                yield read_session(session)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def info(self) -> ServerInfo:
        """Version, limits, durability and device of the server."""
        request = server_pb2.GetServerInfoRequest()
        return read_server(
            self._link.unary(
                lambda channel: server_pb2_grpc.ServerServiceStub(channel).GetServerInfo(
                    request, metadata=self._link.metadata
                )
            )
        )

    def statistics(self) -> Statistics:
        """What the server's engine did since its process started: its batches, and why they were not larger."""
        request = server_pb2.GetStatisticsRequest()
        return read_statistics(
            self._link.unary(
                lambda channel: server_pb2_grpc.ServerServiceStub(channel).GetStatistics(
                    request, metadata=self._link.metadata
                )
            )
        )

    def _layout(self, model: str, version: int | None, kind: str) -> Layout:
        key = (model, version or 0)
        # Threads that open sessions at once share one layout, and so their steps share frames.
        with self._fetching:
            layout = self._layouts.get(key)
            if layout is None:
                request = model_pb2.GetModelRequest(name=model, version=version or 0)
                response = self._link.unary(
                    lambda channel: model_pb2_grpc.ModelServiceStub(channel).GetModel(
                        request, metadata=self._link.metadata
                    )
                )
                layout = self._layouts[key] = Layout(read_model(response.model))
        require_kind(layout.model, kind)
        return layout
