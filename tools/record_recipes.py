"""Records runs in docs/: the metrics and the picture of each recipe's last run, and docs/recipes.md made from them.

    python tools/record_recipes.py RUNS_DIR

Only full runs that reached their figure are recorded. A recipe without a run in RUNS_DIR keeps what is recorded.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from statestream_export import listing

DOCS = Path(__file__).resolve().parents[1] / "docs"


def record(runs: Path, docs: Path) -> list[str]:
    """Copies what runs left and writes recipes.md; the names of the recipes that were recorded."""
    recorded = list[str]()
    for name, report in listing.read(runs).items():
        if report["training"]["quick"] or not report["target_reached"]:
            continue
        target = docs / "recipes" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in ("metrics.json", "picture.png"):
            shutil.copyfile(listing.last_run(runs / name) / file, target / file)
        recorded.append(name)
    (docs / "recipes.md").write_text(listing.markdown(listing.read(docs / "recipes")), encoding="utf-8")
    return recorded


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("recorded:", ", ".join(record(Path(sys.argv[1]), DOCS)))
