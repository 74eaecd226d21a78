"""What `pip install .` at the root of a checkout installs: the three distributions that lie in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from hatchling.metadata.plugin.interface import MetadataHookInterface

PARTS: Final = (
    # Without extras too: pip looks no further than this list for the one that the other two name.
    ("statestream", "client"),
    ("statestream[cli,pandas,progress]", "client"),
    ("statestream-server[cpu,redis,text]", "server"),
    ("statestream-export", "export"),
)
"""Requirements, and the folder of each."""


class Checkout(MetadataHookInterface):
    """Names the folders by their addresses on this machine, which no file can that others have as well."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fills in the dependencies; hatchling calls it when it builds."""
        metadata["dependencies"] = [f"{name} @ {(Path(self.root) / folder).as_uri()}" for name, folder in PARTS]
