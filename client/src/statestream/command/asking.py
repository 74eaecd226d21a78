"""What the subcommands share that ask a server: their options, the call, JSON and tables."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import difflib
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from click.core import ParameterSource
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

import statestream
from statestream.arguments import check_version
from statestream.contract.errors import ModelNotFound, StatestreamError, Unsupported

DEFAULT_ADDRESS, ADDRESS_VARIABLE = "localhost:8001", "STATESTREAM_ADDRESS"

_AS_OPTIONS = {
    "(tls=True)": "(--tls)",
    "leave tls out": "leave --tls out",
    "tls=statestream.Tls(roots=…)": "--tls-roots FILE",
    "statestream.connect(token=…), the environment variable STATESTREAM_TOKEN": "the environment variable"
    " STATESTREAM_TOKEN",
    "call client.predict instead": "call `statestream predict` instead",
    "call client.generate instead": "call `statestream generate` instead",
    "call client.session instead": "call `statestream run` instead",
    "Is it running, and is the port right?": "Is it running, and is the port right? `statestream serve MODELS` starts"
    " one, -a HOST:PORT says where another is",
}
"""What messages tell who writes Python, as who types commands has it."""


class Seconds(click.FloatRange):
    """Seconds, more than 0; the base class lets NaN through, which no comparison refuses."""

    name = "number of seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A finite number of them."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds", param, ctx)
        return seconds


class Version(click.ParamType):  # type: ignore[type-arg]  # It is generic only since click 8.5.
    """The version of a model: its number, or an alias of one."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number, or an alias."""
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        try:
            return check_version(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_TLS, _ROOTS = "statestream.tls", "statestream.tls-roots"


def _keeps(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Has an option's value kept with the context: no command cares."""

    def keep(context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        context.meta[name] = value
        return value

    return keep


def reaches(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a server is reached."""
    function = click.option(
        "--tls-roots",
        type=click.Path(exists=True, dir_okay=False),
        envvar="STATESTREAM_TLS_ROOTS",
        help="PEM of the authorities that a server in TLS is trusted by. [env: STATESTREAM_TLS_ROOTS]",
        expose_value=False,
        callback=_keeps(_ROOTS),
    )(function)
    return click.option(
        "--tls",
        is_flag=True,
        envvar="STATESTREAM_TLS",
        help="The server is in TLS, and one of the machine's authorities knows it. [env: STATESTREAM_TLS]",
        expose_value=False,
        callback=_keeps(_TLS),
    )(function)


def told_tls() -> statestream.Tls | bool:
    """What the running command was told of TLS; the token is in the environment, where no list of processes has it."""
    roots = click.get_current_context().meta.get(_ROOTS)
    return statestream.Tls(roots=roots) if roots else click.get_current_context().meta.get(_TLS, False)


def asks_server(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that all commands about a running server share: its address comes as an argument or an option."""

    @functools.wraps(function)
    def asking(address: str | None, at: str | None, **others: Any) -> Any:
        # An address that is typed goes before one of the environment, which the option has, too.
        typed = click.get_current_context().get_parameter_source("at") == ParameterSource.COMMANDLINE
        if address and typed and address != at:
            raise click.UsageError(f"two addresses came, {address} and {at}; expected one")
        return function(address=address or at or DEFAULT_ADDRESS, **others)

    function_ = click.option("-a", "--address", "at", envvar=ADDRESS_VARIABLE, help="The same as ADDRESS.")(asking)
    function_ = click.option(
        "--timeout", type=Seconds(), default=5.0, show_default=True, help="Seconds to wait for an answer."
    )(function_)
    function_ = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function_)
    return click.argument("address", required=False)(reaches(function_))


def ask(address: str, timeout: float, question: Callable[[statestream.Client], Any]) -> Any:
    """Asks a server; an error is one line and exit code 1."""
    with told(), statestream.connect(address, connect_timeout=timeout, retry_timeout=timeout, tls=told_tls()) as client:
        try:
            return question(client)
        except ModelNotFound as error:
            raise ModelNotFound(error.message + _meant(client), metadata=error.metadata) from error


def _meant(client: statestream.Client) -> str:
    """Which model of the server is called much like the one that the running command names, if that one is not there.

    The server is asked again, and only here: a search at every refusal would be everybody's wait there.
    """
    name = click.get_current_context().params.get("model")
    if not isinstance(name, str):
        return ""
    try:
        known = {model.name for model in client.models()}
    except StatestreamError:
        return ""
    return "" if name in known else closest(name, sorted(known))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Has what a caller may meet be one line, and exit code 1; 2 for an argument that cannot be."""
    try:
        yield
    except StatestreamError as error:
        raise click.ClickException(as_options(str(error))) from error
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    except BrokenPipeError:
        raise  # Of `… | head`, which wants no more: click ends the command without a word.
    except OSError as error:
        raise click.ClickException(str(error)) from error


def as_options(text: str) -> str:
    """A message in the words of the command."""
    for python, option in _AS_OPTIONS.items():
        text = text.replace(python, option)
    return text


def watched() -> bool:
    """Whether somebody looks who wants to know how far a long call is."""
    return sys.stderr.isatty()


def at_server(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that name a model, and so have the server's address as an option."""
    function = click.option(
        "--timeout", type=Seconds(), default=5.0, show_default=True, help="Seconds to wait for a server."
    )(function)
    function = reaches(click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function))
    return click.option(
        "-a",
        "--address",
        default=DEFAULT_ADDRESS,
        show_default=True,
        envvar=ADDRESS_VARIABLE,
        show_envvar=True,
        help="Where the server is.",
    )(function)


def model_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The models of the server that an unfinished command line names, for a shell to choose from; else none."""
    address = ctx.params.get("address") or ctx.params.get("at") or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    try:
        with statestream.connect(address, connect_timeout=1.0, retry_timeout=1.0) as client:
            return sorted({model.name for model in client.models() if model.name.startswith(incomplete)})
    except (StatestreamError, ValueError):
        return []


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` where something is called much like it, in capitals or not."""
    called = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), called, n=1)
    return f"; did you mean {called[found[0]]!r}?" if found else ""


def find_model(client: statestream.Client, name: str) -> statestream.Model:
    """The default version of a model.

    Raises:
        ModelNotFound: There is none; says what is served, and which is called much like it.
        Unsupported: It failed to load; says why.
    """
    models = client.models()
    good = [model for model in models if model.name == name and model.is_default]
    if not good:
        failed = [model for model in models if model.name == name and model.error]
        if failed:
            raise Unsupported(f"model {name!r} does not serve: {failed[0].error}")
        names = sorted({model.name for model in models})
        raise ModelNotFound(f"no model {name!r} is served; served: {', '.join(names) or 'none'}{closest(name, names)}")
    return good[0]


def console() -> Console:
    """Where tables go. Without a terminal there is no width to keep to, and whoever reads wants whole names."""
    console = Console()
    return console if console.is_terminal else Console(width=240)


def print_table(table: Table) -> None:
    """Prints a table."""
    console().print(table)


def specs(specs: Any) -> str:
    """Inputs or outputs: names, dtypes, shapes."""
    return ", ".join(
        f"{spec.name} {spec.dtype}[{','.join('?' if size < 0 else str(size) for size in spec.shape)}]" for spec in specs
    )


def printed(text: str) -> str:
    """A name of a caller's for a terminal: what a terminal would obey, or break a line at, is shown escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def plain(value: Any) -> Any:
    """A view as JSON values; a signature as its specs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else value


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    click.echo(json.dumps(value, indent=2))
