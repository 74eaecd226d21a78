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
    "statestream_server.edges.grpc.reflecting",
    "tempfile",
    "tomllib",
    "statestream_server.drivers.forecast",
    "statestream_server.drivers.generate",
    "statestream_server.models.files.generation",
    "statestream_server.models.files.tokenizer",
    "statestream_server.models.form.chain",
    "statestream_server.models.form.entries",
    "statestream_server.models.form.plan",
    "statestream_server.models.form.tensors",
    "statestream_server.models.form.unfold",
    "statestream_server.models.graphs.fusion",
    "statestream_server.models.graphs.guards",
    "statestream_server.models.memory.device_rows",
    "statestream_server.models.proof.refusals",
    "statestream_server.models.proof.sharing",
    "statestream_server.models.proof.warming",
)
"""All that this process may import late: a release that is installed under it is to find nothing to mix in."""


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
