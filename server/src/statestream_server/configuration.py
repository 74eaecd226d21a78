"""Configuration: the TOML file and the environment beside flags, checked, and where each value came from."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import click
from click.core import ParameterSource

from statestream_server.flags import Retention

DEFAULT_FILE: Final = Path("/etc/statestream/server.toml")
"""What is read where no file is named, if it is there."""
PREFIX: Final = "STATESTREAM_"
_OTHERS: Final = re.compile(
    # What the client, the exporter, compose files and the verbs of our own development read.
    r"(ADDRESS|TOKEN|TLS|TLS_ROOTS|COMPLETE|BIND|PROTOS|DATA|TARGET|TARGET_MODEL|TORCH|SKIP_BUF|DOCKER_UP|PICTURES"
    r"|(REQUIRE|TEST|CHAOS|ATTACK|BENCH|SIMULATION)_\w+"
    # What Kubernetes sets in pods beside Services whose names begin with ours.
    r"|(\w+_)?SERVICE_(HOST|PORT)(_\w+)?|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""Variables with our prefix that are not the server's to judge."""
_LINK: Final = re.compile(r"(tcp|udp|sctp)://\S+")
"""What Kubernetes sets STATESTREAM_…_PORT to, beside a Service of such a name."""
_MASK: Final = "***"
_Decorated = TypeVar("_Decorated", bound=Callable[..., object])


class Configured(click.Command):
    """A command whose flags may stand in the environment and in a file, too; it remembers what it was called with."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context, with all values checked.

        Raises:
            click.UsageError: A value, a key of the file or a variable is none: says which, and where it stands.
        """
        given = [*args]
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.BadParameter as error:
            if error.ctx is not None and error.param is not None and error.param_hint is None:
                error.param_hint = _hint(error.ctx, error.param)
            raise
        check_environment(context)
        context.obj = given
        return context


def option(function: _Decorated) -> _Decorated:
    """Adds `--config`."""
    return click.option(
        "--config",
        envvar=f"{PREFIX}CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="A TOML file with the same names as the flags; the environment and flags go before it. Default:"
        f" {DEFAULT_FILE}, if it is there.",
    )(function)


def _read(context: click.Context, parameter: click.Parameter, named: str | None) -> None:
    """Makes the values of the file the defaults; an empty name is no file."""
    path = Path(named) if named is not None else DEFAULT_FILE
    if named == "" or (named is None and not path.is_file()):
        return
    import tomllib

    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise click.BadParameter(f"{path}: {error}", context, parameter) from error
    context.meta[_FILE] = path
    context.default_map = {**(context.default_map or {}), **_checked(context, path, values)}


_FILE: Final = "statestream_server.configuration.file"


def settings(command: click.Command) -> list[click.Parameter]:
    """The parameters of a command that are settings: all that have a variable, but for the name of the file."""
    return [one for one in command.params if one.envvar and one.name != "config"]


def key(parameter: click.Parameter) -> str:
    """The name of a setting in files: that of its flag without dashes before it."""
    return str(parameter.name).replace("_", "-")


def _checked(context: click.Context, path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file by the names of parameters."""
    known = {key(one): one for one in settings(context.command)}
    found = dict[str, Any]()
    for written, value in values.items():
        parameter = known.get(written.replace("_", "-"))
        if parameter is None:
            raise click.UsageError(
                f"{path}: unknown key {written!r}{_meant(written.replace('_', '-'), known)}; known are"
                f" {', '.join(sorted(known))}",
                context,
            )
        name = str(parameter.name)
        if name in found:
            raise click.UsageError(
                f"{path}: {key(parameter)} is there twice, with - and with _: leave one out", context
            )
        several = parameter.nargs < 0 or getattr(parameter, "multiple", False)
        each = value if several and isinstance(value, list) else [value]
        for one in each:
            _check_kind(context, path, written, parameter, one)
        found[name] = each if several else value
    return found


def _check_kind(context: click.Context, path: Path, written: str, parameter: click.Parameter, value: Any) -> None:
    """Refuses what click would make something of that nobody meant: true for a port, 1.5 for a count."""
    kind = parameter.type
    if isinstance(kind, click.types.BoolParamType):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(kind, click.types.IntParamType):
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(kind, click.types.FloatParamType):
        fits, wanted = _is_number(value), "a number"
    elif isinstance(kind, Retention):
        fits = isinstance(value, str) or _is_number(value)
        wanted = 'seconds, or texts as "MODEL=SECONDS" in a list'
    else:
        fits, wanted = isinstance(value, str) and "\0" not in value, "a text in quotes"
    if not fits:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise click.UsageError(f"{path}: {written} is {shown}, expected is {wanted}", context)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def check_environment(context: click.Context) -> None:
    """Checks that each variable with our prefix is one that somebody reads.

    Raises:
        click.UsageError: One is not: says which are known.
    """
    known = {str(one.envvar) for one in context.command.params if one.envvar}
    for name, value in sorted(os.environ.items()):
        if not name.startswith(PREFIX) or name in known or _OTHERS.fullmatch(name.removeprefix(PREFIX)):
            continue
        if name.endswith("_PORT") and _LINK.fullmatch(value):
            continue
        raise click.UsageError(
            f"unknown variable {name} in the environment{_meant(name, known)}; known are {', '.join(sorted(known))}",
            context,
        )


def _meant(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}" if close else ""


def origin(context: click.Context, parameter: click.Parameter) -> tuple[str, str]:
    """Where a value came from: flag, environment, file or default; and its flag, its variable, FILE:KEY or nothing."""
    source = context.get_parameter_source(str(parameter.name))
    if source is ParameterSource.COMMANDLINE:
        return "flag", parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.metavar or "MODELS")
    if source is ParameterSource.ENVIRONMENT:
        return "environment", str(parameter.envvar)
    if source is ParameterSource.DEFAULT_MAP:
        return "file", f"{context.meta.get(_FILE, '')}:{key(parameter)}"
    return "default", ""


def _hint(context: click.Context, parameter: click.Parameter) -> str | None:
    """What a message calls a value that does not stand in a flag."""
    kind, where = origin(context, parameter)
    return f"'{where}'" if kind in ("environment", "file") else None


def masked(store: str) -> str:
    """A store as it may be shown: without the password that its URL may have."""
    scheme, slashes, rest = store.partition("://")
    if not slashes:
        return store
    secret, at, rest = rest.rpartition("@")
    user = f"{secret.partition(':')[0]}:{_MASK}@" if ":" in secret else f"{secret}@" if at else ""
    place, mark, options = rest.partition("?")
    shown = [_masked_option(one) for one in options.split("&")]
    return f"{scheme}://{user}{place}{mark}{'&'.join(shown)}"


def _masked_option(text: str) -> str:
    name, equals, _ = text.partition("=")
    plain = unquote(name).lower()
    secret = "password" in plain and not plain.endswith("_file")
    return f"{name}={_MASK}" if equals and secret else text
