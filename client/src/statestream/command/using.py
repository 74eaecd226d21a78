"""The subcommands that use models: run, forecast, generate, predict."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click
import numpy as np

import statestream
from statestream.command import lines
from statestream.command.asking import Version, at_server, find_model, model_names, told, told_tls, watched
from statestream.contract.errors import Unsupported
from statestream.progress import reporting
from statestream.views import require_kind

_MODEL = click.argument("model", shell_complete=model_names)


class _File(click.Path):
    """A file that is there, or `-`."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, allow_dash=True)

    def fail(self, message: str, param: click.Parameter | None = None, ctx: click.Context | None = None) -> NoReturn:
        """Says where it was looked for, and what is expected."""
        super().fail(f"{message} (Looked for in {os.getcwd()}.) Expected a file, or - for standard input.", param, ctx)


_FILE = _File()


@contextlib.contextmanager
def _client(model: str, address: str, timeout: float) -> Iterator[tuple[statestream.Client, statestream.Model]]:
    """A client and the model: of a server that runs, or of one of its own where the model is a file."""
    if model.endswith(".onnx") or os.sep in model:  # No model is called like a path.
        with told(), statestream.local(model) as client:
            found = [each for each in client.models() if each.is_default and not each.error]
            if len(found) != 1:
                names = ", ".join(each.name for each in found) or "none that serves"
                raise Unsupported(f"{model} has {len(found)} models ({names}); name the file of one")
            yield client, found[0]
        return
    with (
        told(),
        statestream.connect(
            address, connect_timeout=timeout, retry_timeout=max(timeout, 10.0), tls=told_tls()
        ) as client,
    ):
        yield client, find_model(client, model)


@click.command()
@_MODEL
@click.argument("file", type=_FILE, required=False)
@at_server
@click.option("--id", "id", default=None, help="The session's id: it is resumed, and stays. Without one it is new.")
@click.option("--version", type=Version(), default=None, help="The model's version, or an alias of one.")
def run(
    model: str,
    file: str | None,
    address: str,
    as_json: bool,
    timeout: float,
    id: str | None,
    version: int | str | None,
) -> None:
    """Type inputs, see answers: a session where MODEL has memory.

    MODEL is a model of the server, or an .onnx file, which gets a server of its own meanwhile. A line is one step:
    numbers with commas or spaces, JSON, or text where the model takes text. Lines come from FILE, or with - or without
    FILE from standard input; piped, answers are lines of JSON. The first line may be a header, as of CSV.
    """
    typed = file is None and sys.stdin.isatty()
    as_lines = as_json or not sys.stdout.isatty()
    with _client(model, address, timeout) as (client, found), contextlib.ExitStack() as leaving:
        if found.kind == "session":
            session = leaving.enter_context(client.session(found.name, id, version=version))
            answer: Any = session.step
        elif id is not None:
            raise click.UsageError(f"model {found.name!r} has no memory ({found.kind}), so --id has nothing to name")
        elif found.kind == "predict":
            answer = lambda x: _single(client.predict(found.name, _many(x), version=version))  # noqa: E731
        else:
            answer = lambda x: client.generate(found.name, x, version=version)  # noqa: E731
        if typed:
            click.echo(f"{found.name} takes {_wanted(found)}; Ctrl-D ends", err=True)
        reader = lines.Reader(found)
        came = _typed(found.name) if typed else _piped(file or lines.PIPED)
        for number, line in enumerate(came, 1):
            try:
                x = line.strip() or None if found.kind == "generate" else reader(line)
                if x is None:
                    continue
                y = answer(x)
            except (ValueError, statestream.BadTensor, statestream.NonFiniteState) as error:
                if not typed:
                    place = f"{file}, " if file not in (None, lines.PIPED) else ""
                    raise click.ClickException(f"{place}line {number}: {error}") from error
                click.echo(str(error), err=True)
                continue
            if as_lines:
                stands = {"position": session.position} if found.kind == "session" else {}
                click.echo(json.dumps({**stands, **_named(found, y)}))
            else:
                click.echo(lines.shown(y))


def _wanted(model: statestream.Model) -> str:
    return "text" if model.kind == "generate" else lines.expected(model)


def _typed(name: str) -> Iterator[str]:
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input(f"{name}> ")
    click.echo(err=True)


def _many(x: Any) -> Any:
    """One item as a batch of one."""
    if isinstance(x, dict):
        return {name: _many(one) for name, one in x.items()}
    return [x] if isinstance(x, str) else np.asarray(x)[None]


def _single(y: Any) -> Any:
    return {name: one[0] for name, one in y.items()} if isinstance(y, dict) else y[0]


def _named(model: statestream.Model, y: Any) -> dict[str, Any]:
    if isinstance(y, dict):
        found: dict[str, Any] = lines.plain(y)
        return found
    outputs = model.signature.outputs
    return {"text" if model.kind == "generate" or not outputs else outputs[0].name: lines.plain(y)}


def _piped(file: str) -> Iterator[str]:
    """The lines of a file; who is to type those of `-` is told so."""
    _tell_typist(file)
    return lines.read_lines(file)


def _data(file: str) -> bytes:
    _tell_typist(file)
    return lines.read_bytes(file)


def _tell_typist(file: str) -> None:
    if file == lines.PIPED and sys.stdin.isatty():
        click.echo("reads standard input, line by line; Ctrl-D ends it", err=True)


@click.command()
@_MODEL
@click.argument("file", type=_FILE)
@at_server
@click.option("--h", "h", default=24, show_default=True, type=click.IntRange(1), help="How many steps.")
@click.option("--level", multiple=True, type=float, help="Central intervals in percent, for instance 80.")
@click.option(
    "--bands", type=click.Choice(["conformal"]), default=None, help="For models that say not how sure they are."
)
@click.option("--seed", type=click.IntRange(0), default=None, help="What draws begin with.")
def forecast(
    model: str,
    file: str,
    address: str,
    as_json: bool,
    timeout: float,
    h: int,
    level: tuple[float, ...],
    bands: str | None,
    seed: int | None,
) -> None:
    """Forecast what comes after the past in FILE: CSV with a header, or - for standard input.

    With columns unique_id and ds it has many series, and pandas is needed. The answer is CSV, or JSON lines.
    """
    with _client(model, address, timeout) as (client, found):
        header, rows = lines.read_table(file, lines.read_text(_data(file), file))
        wish: dict[str, Any] = {"level": list(level) or None, "bands": bands, "seed": seed, "progress": watched()}
        if {"unique_id", "ds"} & set(header):
            table = _frame(header, rows, client.forecast, found.name, h, wish)
            told_as = {"orient": "records", "lines": True, "date_format": "iso"}
            click.echo(table.to_json(**told_as) if as_json else table.to_csv(index=False), nl=False)
            return
        past = lines.columns_of(header, rows, found.signature.inputs[0].columns, file)
        answer = client.forecast(found.name, past, h=h, **wish)
        names = [*found.signature.outputs[0].columns] or [f"y{place}" for place in range(answer.shape[1])]
        if len(names) == 1 and not level:
            names = [found.name]
        _rows(names, answer, level, as_json=as_json)


def _rows(names: list[str], answer: np.ndarray, level: tuple[float, ...], *, as_json: bool) -> None:
    """A line a step: a column for each value, or for each bound of it."""
    bounds = [f"-{side}-{each:g}" for each in sorted(level) for side in ("lo", "hi")]
    if level and answer.shape[-1] != len(bounds):
        bounds = [f"-{place}" for place in range(answer.shape[-1])]
    columns = [f"{name}{bound}" for name in names for bound in bounds] if level else names
    if not as_json:
        click.echo(",".join(columns))
    for row in answer.reshape(len(answer), -1).tolist():
        if as_json:
            click.echo(json.dumps(dict(zip(columns, lines.plain(row), strict=True))))
        else:
            click.echo(",".join(map(repr, row)))


def _frame(header: list[str], rows: list[list[str]], call: Any, model: str, h: int, wish: dict[str, Any]) -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise click.ClickException(
            "a table with unique_id and ds is read by pandas, which is not installed: pip install 'statestream[pandas]'"
        ) from error
    table = pd.DataFrame(rows, columns=header)
    for name in header:
        try:
            if name == "ds":
                table[name] = pd.to_datetime(table[name])
            elif name != "unique_id":
                table[name] = pd.to_numeric(table[name])
        except ValueError as error:
            raise lines.LineError(
                f"column {name} has what is no {'time' if name == 'ds' else 'number'}: {error}"
            ) from error
    return call(model, table, h=h, **wish)


@click.command()
@_MODEL
@click.argument("text", nargs=-1)
@at_server
@click.option("--max-tokens", type=click.IntRange(1), default=None, help="The most tokens of an answer.")
@click.option("--num-beams", type=click.IntRange(1), default=None, help="Answers that go on side by side.")
@click.option("--temperature", type=float, default=None, help="Draws instead of taking the likeliest.")
@click.option("--seed", type=click.IntRange(0), default=None, help="What draws begin with.")
def generate(model: str, text: tuple[str, ...], address: str, as_json: bool, timeout: float, **wish: Any) -> None:
    """Answer each TEXT with a text; - stands for the lines of standard input.

    These are read without any TEXT, too.
    """
    given = text or (lines.PIPED,)
    reads = lines.PIPED in given
    drawn = watched() and not (reads and sys.stdin.isatty())  # Nothing is drawn where somebody types.
    with (
        _client(model, address, timeout) as (client, found),
        reporting(drawn, f"generate {found.name}", None if reads else len(given), "texts") as tell,
    ):
        for number, (one, piped) in enumerate(_texts(given), 1):
            if (
                one or not piped
            ):  # An empty line has nothing to answer; an empty TEXT is an error that the server tells.
                answer = client.generate(found.name, one, **wish)
                click.echo(json.dumps({"source": one, "text": lines.plain(answer)}) if as_json else str(answer))
            if tell is not None:
                tell(number)


def _texts(given: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Each text, and whether it is a line of standard input."""
    for text in given:
        if text == lines.PIPED:
            for line in _piped(text):
                yield line.rstrip("\r\n"), True
        else:
            yield text, False


@click.command()
@_MODEL
@click.argument("file", type=_FILE)
@at_server
def predict(model: str, file: str, address: str, as_json: bool, timeout: float) -> None:
    """Run a model without memory on FILE: a line an item (CSV, JSON or text), a .npy with a batch, or -.

    A FILE of - is standard input. The answer is a line of JSON an item.
    """
    with _client(model, address, timeout) as (client, found):
        require_kind(found, "predict")
        data = _data(file)
        x: Any = lines.read_array(data)
        if x is None:
            x = _items(lines.Reader(found), lines.read_text(data, file), lines.called(file))
        batches = [x] if isinstance(x, np.ndarray) else _batches(x)
        for batch in batches:
            y = client.predict(found.name, batch, progress=watched() and _length(batch) > 1)
            several = y if isinstance(y, dict) else {found.signature.outputs[0].name: y}
            for row in range(len(next(iter(several.values())))):
                click.echo(json.dumps({name: lines.plain(one[row]) for name, one in several.items()}))


def _length(batch: Any) -> int:
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch)


def _batches(items: list[Any]) -> Iterator[Any]:
    """Items in their order; as long as they have one shape, a batch of them."""
    for _, group in itertools.groupby(items, key=_shape):
        alike = [*group]
        if isinstance(alike[0], dict):
            yield {name: np.stack([item[name] for item in alike]) for name in alike[0]}
        else:
            yield alike if isinstance(alike[0], str) else np.stack(alike)


def _shape(item: Any) -> Any:
    return {name: np.shape(one) for name, one in item.items()} if isinstance(item, dict) else np.shape(item)


def _items(reader: lines.Reader, text: str, file: str) -> list[Any]:
    items = list[Any]()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            x = reader(line)
        except ValueError as error:
            raise click.ClickException(f"{file}, line {number}: {error}") from error
        if x is not None:
            items.append(x)
    if not items:
        raise click.ClickException(f"{file} has no item; expected a line for each")
    return items
