"""The commands about a file: `statestream inspect` and `statestream sign`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import click


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON: by name a list of texts.")
def inspect(file: Path, as_json: bool) -> None:
    """Tells what the server would make of an ONNX file, and why."""
    describe = _describing()
    from statestream_server.models.model import ModelLoadError

    try:
        if as_json:
            found: dict[str, list[str]] = {}
            for key, value in describe.facts(file):
                found.setdefault(key, []).append(value)
            click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        elif sys.stdout.isatty():
            describe.show(file)
        else:
            click.echo(describe.describe(file))
    except ModelLoadError as error:
        raise click.ClickException(str(error)) from error


_MANY: Final[Mapping[str, Any]] = {"multiple": True, "metavar": "NAME=VALUE"}


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--state", "states", **_MANY, help="A state: its input, and the output that is its next value.")
@click.option("--start", **_MANY, help="What a state starts from: one number, or all of a row with commas.")
@click.option("--shape", "shapes", **_MANY, help='All axes of a tensor with commas: lengths, "batch" and "time".')
@click.option("--context", **_MANY, help="An input that is given its last values again: how many.")
@click.option("--window", **_MANY, help="An input that takes so many past steps; after a comma: start, pad or hold.")
@click.option("--constant", "constants", **_MANY, help="An input with one value for everybody.")
@click.option("--session", **_MANY, help="An input with one value a session, and which it has if nothing is said.")
@click.option("--counter", "counters", **_MANY, help="An input that counts, and by how much a step.")
@click.option("--columns", **_MANY, help="The names of features along the last axis, with commas.")
@click.option("--feedback", **_MANY, help="An output, and the input that it becomes when the model forecasts.")
@click.option("--missing", **_MANY, help="What becomes of NaN in an input: refuse, hold or predict.")
@click.option(
    "--elapsed", **_MANY, help="An input that is the time since the step before: its unit; after a comma the first."
)
@click.option("--wire", "wires", **_MANY, help="Of a chain: an input, and the output of an earlier file that it takes.")
@click.option("--horizon", **_MANY, help="An output that has several steps ahead at once, and along which axis.")
@click.option("--generate", **_MANY, help="Of an encoder and its decoder: a token or a length, as end_token=1.")
@click.option("--stateless", is_flag=True, help="It has no memory, whatever it looks like.")
@click.option("--toml", is_flag=True, help="Write the model.toml beside FILE instead of a signed copy.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the copy is written; of an encoder and its decoder the folder. Default: FILE with .signed.onnx for its"
    " ending, the folder signed beside it.",
)
def sign(file: Path, stateless: bool, toml: bool, output: Path | None, **given: Sequence[str]) -> None:
    """Writes a copy of an ONNX file that says what of it is memory, in the form in which it is served.

    FILE may be the model.toml of a chain: its files become one; or an encoder_model.onnx or decoder_model.onnx: both
    are written, as encoder.onnx and decoder.onnx. What the options do not tell comes from the model.toml
    beside FILE, and then from its graph. The entries are those of model.toml; each option may come several times.
    """
    _describing()
    from statestream_server.models.files import files, repository
    from statestream_server.models.form import entries
    from statestream_server.models.form.told import Told, ToldError
    from statestream_server.models.model import ModelLoadError
    from statestream_server.models.proof import loading

    beside, couple = repository.settling(file), repository.pair(file) is not None
    try:
        there = files.told(beside)
        known = entries.loads(there[0]) if there is not None else Told()
        more = {key: [_entry(key, each) for each in texts] for key, texts in given.items() if texts}
        said = entries.added(known, more, stateless=stateless)
        folder = output or file.parent / "signed"
        if couple:
            made = {folder / name: each for name, each in loading.signed_couple(file, said).items()}
        else:
            made = {output or file.with_suffix(".signed.onnx"): loading.signed(file, said)}
        if toml:
            beside.write_text(entries.dumps(said))
            click.echo(f"{beside}: written")
            return
        if couple:
            folder.mkdir(parents=True, exist_ok=True)
        for place, each in made.items():
            fresh = place.with_name(f".{place.name}.new")
            fresh.write_bytes(each.SerializeToString())
            fresh.replace(place)
            click.echo(f"{place}: written; `statestream inspect` tells what is in it")
    except ToldError as error:
        raise click.ClickException(f"{beside if beside.is_file() else file}: {error}") from error
    except (ModelLoadError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _entry(kind: str, text: str) -> tuple[str, str]:
    """An option's NAME=VALUE; a name may have a = in it, and so may an output's."""
    name, sign, value = text.partition("=") if kind in ("states", "wires", "feedback") else text.rpartition("=")
    if not (name and sign and value):
        raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE", param_hint=f"--{kind}")
    return name, value


def _describing() -> ModuleType:
    """What reads models, which needs ONNX Runtime."""
    try:
        from statestream_server import describe
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    return describe
