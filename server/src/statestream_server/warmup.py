"""The warm-up: what the first answers do not need is imported once the server answers, beside them."""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import Final

log = logging.getLogger(__name__)

_SECONDS: Final = 1.0
"""After the start: whoever waited for it has had first answers then, and imports take turns with the loop."""
_MODULES: Final = (
    "numpy.ma",  # np.unique imports it, with the first frame of many sessions.
    "statestream_server.edges.grpc.forecasting",
    "statestream_server.edges.grpc.generating",
    "statestream_server.edges.grpc.oip",
    "grpc_reflection.v1alpha.reflection",
    "statestream_server.models.proof.sharing",
)


async def after_the_start() -> None:
    """Imports the rest a moment after the start; what is called before imports its own, and its caller waits for it."""
    await asyncio.sleep(_SECONDS)
    await asyncio.to_thread(_imported)


def _imported() -> None:
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            log.warning("%s cannot be imported (%s): what needs it will fail; install this release again", name, error)
