"""The list of published data sets: which recipes learn from each, where it was found, and how to get it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from statestream_export.datasets import files
from statestream_export.datasets.files import Published
from statestream_export.datasets.images import FASHION, MNIST
from statestream_export.datasets.series import M1_YEARLY
from statestream_export.datasets.tables import ADULT, GERMAN, GERMAN_CODES

RECIPES: Final[tuple[tuple[Published, tuple[str, ...]], ...]] = (
    (MNIST, ("rows", "rows-lstm", "rows-gru", "lenet", "convnet")),
    (FASHION, ("fashion",)),
    (GERMAN, ("credit",)),
    (GERMAN_CODES, ("credit",)),
    (ADULT, ("income",)),
    (M1_YEARLY, ("deepar", "global-rnn")),
)
"""Every published data set, and the recipes that learn from it."""


def entries() -> list[dict[str, Any]]:
    """What is known of each data set, as JSON has it; `found` has the place that a recipe takes first."""
    return [
        {
            "data": published.name,
            "recipes": list(recipes),
            "found": [
                {"folder": str(found.folder), "by": found.place, "other_contents": list(found.others)}
                for found in files.look(published)
            ],
            "files": {
                name: {"fetched": file.fetched, "contents": file.contents} for name, file in published.files.items()
            },
            "get": files.ways(published, recipe=None if published is GERMAN_CODES else recipes[0]),
        }
        for published, recipes in RECIPES
    ]


def lines(entry: dict[str, Any]) -> Iterator[str]:
    """One entry as text."""
    for place in entry["found"]:
        others = place["other_contents"]
        state = f"not used: other contents than published in {', '.join(others)}" if others else "as published"
        yield f"found   {place['folder']} ({place['by']}), {state}"
    if not entry["found"]:
        yield "found   nowhere on this machine"
    for name, file in entry["files"].items():
        yield f"file    {name}: fetched {file['fetched']}"
        if file["contents"] != file["fetched"]:
            yield f"        {name.removesuffix('.gz')}: {file['contents']}"
    for way in entry["get"]:
        yield f"get     {way}"
