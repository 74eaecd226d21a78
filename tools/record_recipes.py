"""Records runs in docs/: the metrics and the picture of each recipe's last run, and docs/recipes.md made from them.

    python tools/record_recipes.py RUNS_DIR

Only full runs that reached their figure are recorded: the last on published data, and as built-in.json the last with
`--built-in`. A recipe without a run in RUNS_DIR keeps what is recorded.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from statestream_export import listing
from statestream_export.recipes import NAMES

DOCS = Path(__file__).resolve().parents[1] / "docs"


def record(runs: Path, docs: Path) -> list[str]:
    """Copies what runs left and writes recipes.md; the names of the recipes that were recorded."""
    recorded = list[str]()
    for name in NAMES:
        chosen = dict[bool, Path]()
        for run in sorted((runs / name).glob("[0-9]*"), key=lambda path: int(path.name)):
            report = json.loads((run / "metrics.json").read_text("utf-8"))
            if report["target_reached"] and not report["training"]["quick"]:
                chosen[report["training"]["built_in"]] = run
        target = docs / "recipes" / name
        if chosen:
            target.mkdir(parents=True, exist_ok=True)
            recorded.append(name)
        if False in chosen:
            for file in ("metrics.json", "picture.png"):
                shutil.copyfile(chosen[False] / file, target / file)
        if True in chosen:
            shutil.copyfile(chosen[True] / "metrics.json", target / listing.STANDS_IN)
    recipes = docs / "recipes"
    text = listing.markdown(listing.read(recipes), listing.read(recipes, listing.STANDS_IN))
    (docs / "recipes.md").write_text(text, encoding="utf-8")
    return recorded


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("recorded:", ", ".join(record(Path(sys.argv[1]), DOCS)))
