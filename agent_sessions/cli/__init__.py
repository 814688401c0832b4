"""The `agent-sessions` command. Frameworks and stores are imported by the commands that need them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from .dynamodb import app as dynamodb
from .langgraph import app as langgraph

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(dynamodb, name="dynamodb")
app.add_typer(langgraph, name="langgraph")


def main() -> None:
    """Run the command line."""
    app(prog_name="agent-sessions")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"agent-sessions {version('agent-sessions-runtime')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One session for the agents of every framework."""


@app.command()
def demo(second_turn_of: Annotated[str, typer.Option(hidden=True)] = "") -> None:
    """Show two frameworks in one session, across a restart. Needs no key and no network.

    Sessions are kept where AK_SESSION__TYPE says: in memory, or, with AK_SESSION__TYPE=redis, in Redis, and then the
    two turns run in two processes.
    """
    from .demo import run_demo

    raise typer.Exit(run_demo(second_turn_of=second_turn_of))


@app.command()
def rekey(
    restart: Annotated[bool, typer.Option("--restart", help="Begin again, not where an earlier run stopped.")] = False,
) -> None:
    """Encrypt everything in the store with the first of AK_SESSION__ENCRYPTION__KEYS.

    Agents may go on running. It can be stopped at any time, and goes on where it was. Exit code 1: something still
    needs another key.
    """
    from .rekey import run_rekey

    raise typer.Exit(run_rekey(restart=restart))


@app.command()
def migrate(
    from_: Annotated[
        str, typer.Option("--from", metavar="STORE", help="Where everything is. Default: the environment's store.")
    ] = "",
    to: Annotated[
        str, typer.Option("--to", metavar="STORE", help="Where it is to be. Default: the environment's store.")
    ] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace also what differs and is no older copy.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read and compare also the copies that earlier runs made.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
) -> None:
    """Copy everything from one store to another, and verify each copy.

    A store is named by sqlite:///file, redis://host:6379, dynamodb://table?region=..., or a YAML file of settings.

    It can be stopped at any time, and goes on where it was. Run again, it brings up to date what was written in the
    old store meanwhile. Exit code 1: something is not in the new store as it is in the old one.
    """
    from .migrate import run_migrate

    raise typer.Exit(run_migrate(from_, to, overwrite=overwrite, verify=verify, dry_run=dry_run))
