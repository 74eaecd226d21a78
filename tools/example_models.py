"""The example models: trains those in deploy/models anew, by recipes, seeds and sizes that stand here.

    python tools/example_models.py            trains all and writes deploy/models and deploy/models.json
    python tools/example_models.py --check    trains all and says which would be other bytes

One machine writes the same bytes each time; another one's processor may round sums of training otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from statestream_export.recipe import Recipe
from statestream_export.recipes import load
from statestream_export.recipes.antonyms import Antonyms
from statestream_export.runs import execute

DEPLOY: Final = Path(__file__).resolve().parents[1] / "deploy"
MOST_BYTES: Final = 200_000
"""All files together: they are part of the repository and of every image."""


@dataclass(frozen=True, slots=True)
class Example:
    """How one example is made.

    Attributes:
        recipe: The recipe's name, and the model's.
        seed: What it is trained with.
        quantize: "int8" where the file is to be small.
        hidden: The units of its layers, where they are not the recipe's own.
    """

    recipe: str
    seed: int = 0
    quantize: Literal["int8"] | None = None
    hidden: int | None = None

    def made(self) -> Recipe[Any]:
        """The recipe in its size."""
        if self.hidden is None:
            return load(self.recipe)
        assert self.recipe == "antonyms"
        return Antonyms(self.hidden)


EXAMPLES: Final = (
    Example("sunspots", quantize="int8"),
    Example("tagger"),
    Example("hello-embedding"),
    Example("antonyms", hidden=48),
    Example("sentiment"),
)
"""A forecaster and a tagger with memory, letters, a sequence to a sequence, and a classifier without memory.

No image network: the training of convolutions rounds by where its memory lies, so their bytes are not the same twice.
"""


def train(examples: Sequence[Example], models: Path) -> dict[str, Any]:
    """Trains into `models`, a version 1 of each, on built-in data alone; what models.json says of them.

    Raises:
        SystemExit: A model did not reach its recipe's figure.
    """
    said = dict[str, Any]()
    for example in examples:
        with tempfile.TemporaryDirectory() as folder:
            result = execute(
                example.made(), Path(folder), Path(folder, "runs"), seed=example.seed, quantize=example.quantize
            )
            if not result.reached:
                raise SystemExit(f"{example.recipe}: its figure was not reached; {dict(result.metrics)}")
            target = models / example.recipe / "1"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(result.model, target)
        said[example.recipe] = {
            "settings": asdict(example),
            "metrics": dict(result.metrics),
            "files": {file.name: fingerprint(file) for file in sorted(target.iterdir())},
        }
    return said


def fingerprint(file: Path) -> dict[str, int | str]:
    """Its bytes, and their SHA-256."""
    contents = file.read_bytes()
    return {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}


def main(arguments: Sequence[str]) -> int:
    """Trains all; 1 where a file is other bytes than the recorded ones, or all are too many bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    check = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        said = train(EXAMPLES, models)
        total = sum(file["bytes"] for model in said.values() for file in model["files"].values())
        recorded = DEPLOY / "models.json"
        before = json.loads(recorded.read_text("utf-8")) if recorded.exists() else {}
        changed = [name for name in said.keys() | before.keys() if said.get(name) != before.get(name)]
        print(f"{len(said)} models, {total:,} bytes; other than recorded: {', '.join(sorted(changed)) or 'none'}")
        if total > MOST_BYTES:
            print(f"that is more than {MOST_BYTES:,} bytes", file=sys.stderr)
            return 1
        if check:
            return bool(changed)
        shutil.rmtree(DEPLOY / "models", ignore_errors=True)
        shutil.copytree(models, DEPLOY / "models")
        recorded.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
