"""Rights: which right a method asks for, and what a call of it counts as."""

from __future__ import annotations

import functools
from typing import Final

from statestream_server.access.tokens import ADMIN, STEP

OPEN: Final = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
"""What anybody may call."""
_ADMIN: Final = frozenset(
    {
        "LoadModel", "UnloadModel", "SetAlias", "RepositoryModelLoad", "RepositoryModelUnload", "MoveSessions",
        "GetStatistics", "ModelStatistics", "ListQuarantine", "FreeQuarantined",
    }
)  # fmt: skip
_ANY: Final = frozenset(
    {
        "GetServerInfo", "ListModels", "GetModel", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelReady",
        "RepositoryIndex",
    }
)  # fmt: skip
COUNTED: Final = {
    "/statestream.v1.InferenceService/Stream": ("streams",),
    "/inference.GRPCInferenceService/ModelStreamInfer": ("streams",),
    "/statestream.v1.InferenceService/Forecast": ("calls", "forecasts"),
    "/statestream.v1.InferenceService/Generate": ("calls", "texts"),
}
"""What a call counts as among those of its tenant that are under way."""
CALLS: Final = ("calls",)


@functools.cache
def right_of(method: str) -> str:
    """The right that a method needs; "" for what every token may. docs/security.md has the table."""
    service, _, name = method.strip("/").rpartition("/")
    if name in _ADMIN:
        return ADMIN
    if name in _ANY or service.startswith("grpc."):
        return ""
    return STEP
