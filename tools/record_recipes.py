"""Records runs in docs/: the metrics and the picture of each recipe's last run, and docs/recipes.md made from them.

    python tools/record_recipes.py RUNS_DIR

Only full runs that reached their figure are recorded: the last on published data, and in its report, as `built_in`,
that of the last with `--built-in`. What RUNS_DIR has no run of stays as it is recorded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from statestream_export import listing
from statestream_export.recipes import NAMES

DOCS = Path(__file__).resolve().parents[1] / "docs"


def record(runs: Path, docs: Path) -> list[str]:
    """Copies what runs left and writes recipes.md; the names of the recipes that were recorded."""
    recorded = list[str]()
    before = listing.read(docs / "recipes")
    for name in NAMES:
        report, picture = dict(before.get(name, {})), None
        stands_in = report.pop(listing.STANDS_IN, None)
        for run in sorted((runs / name).glob("[0-9]*"), key=lambda path: int(path.name)):
            found = json.loads((run / "metrics.json").read_text("utf-8"))
            if not found["target_reached"] or found["training"]["quick"] or found["training"]["interrupted"]:
                continue
            recorded.append(name)
            if found["training"]["built_in"]:
                stands_in = found
            else:
                report, picture = found, run / "picture.png"
        if name not in recorded or not report:
            continue
        target = docs / "recipes" / name
        target.mkdir(parents=True, exist_ok=True)
        if stands_in is not None:
            report[listing.STANDS_IN] = stands_in
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (target / "metrics.json").write_text(text, encoding="utf-8")
        if picture is not None:
            # The colours that it has, in a table: a third of the bytes.
            with Image.open(picture) as image:
                image.convert("RGB").quantize(256).save(target / "picture.png", optimize=True)
    (docs / "recipes.md").write_text(listing.markdown(listing.read(docs / "recipes")), encoding="utf-8")
    return list(dict.fromkeys(recorded))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("recorded:", ", ".join(record(Path(sys.argv[1]), DOCS)))
