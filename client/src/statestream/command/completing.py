"""The subcommand that prints what a shell needs to complete the others."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

_VARIABLE: Final = "_STATESTREAM_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what has SHELL complete commands, options, models of the server and recipes.

    bash and zsh: eval "$(statestream completion bash)" in ~/.bashrc or ~/.zshrc; fish: statestream completion fish >
    ~/.config/fish/completions/statestream.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "statestream", _VARIABLE).source())
