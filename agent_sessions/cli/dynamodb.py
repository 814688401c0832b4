"""`agent-sessions dynamodb`: the table of the DynamoDB store."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from agent_sessions import SessionError, Settings
from agent_sessions.errors import InvalidError
from agent_sessions.settings import DynamoDBSettings

if TYPE_CHECKING:
    from agent_sessions.stores.dynamodb import DynamoDBStore

DEFAULT_NAME = "agent-sessions"

app = typer.Typer(no_args_is_help=True, help="Make, check or print the table of the DynamoDB store.")

TableName = Annotated[str, typer.Option("--table-name", help="The table. Default: AK_SESSION__DYNAMODB__TABLE_NAME.")]


@app.command("create-table")
def create_table(table_name: TableName = "") -> None:
    """Make the table, with its indexes and its TTL, and wait until it is ready. One that is there is checked."""

    async def create(store: DynamoDBStore) -> str:
        made = await store.create_table()
        return "is made and ready" if made else "was there already, and is as it should be"

    _run(create, table_name)


@app.command()
def check(table_name: TableName = "") -> None:
    """Check the table: its key, its indexes, its TTL. Exit code 1: it is missing, or something is wrong."""

    async def look(store: DynamoDBStore) -> str:
        await store.check_table()
        return "is as it should be"

    _run(look, table_name)


@app.command()
def cloudformation(table_name: TableName = "") -> None:
    """Print the table as a CloudFormation template."""
    _print("cloudformation", table_name)


@app.command()
def terraform(table_name: TableName = "") -> None:
    """Print the table as a Terraform configuration."""
    _print("terraform", table_name)


def _run(work: Callable[[DynamoDBStore], Awaitable[str]], table_name: str) -> None:
    """Print what became of the table."""

    async def on_store() -> str:
        from agent_sessions.stores.dynamodb import DynamoDBStore

        store = DynamoDBStore.from_settings(settings)
        try:
            return await work(store)
        finally:
            await store.aclose()

    with _errors():
        settings = _settings(table_name)
        print(f"The table {settings.dynamodb.table_name} {asyncio.run(on_store())}.")


def _print(language: str, table_name: str) -> None:
    with _errors():
        from agent_sessions.stores.dynamodb.service import table

        write = {"cloudformation": table.cloudformation, "terraform": table.terraform}[language]
        print(write(_settings(table_name).dynamodb.table_name or DEFAULT_NAME), end="")


def _settings(table_name: str) -> Settings:
    """The settings of the environment, with a table that was named on the command line."""
    settings = Settings.load()
    if not table_name:
        return settings
    try:
        named = DynamoDBSettings(**{**settings.dynamodb.model_dump(), "table_name": table_name})
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise InvalidError("TABLE_NAME", f"--table-name: {problem}", field="table_name") from None
    return settings.model_copy(update={"dynamodb": named})


@contextmanager
def _errors() -> Iterator[None]:
    """What goes wrong, in one line, and exit code 1."""
    try:
        yield
    except SessionError as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        reason = f"The package {error.name} is missing. pip install 'agent-sessions-runtime[dynamodb]'"
    else:
        return
    print(reason, file=sys.stderr)
    raise typer.Exit(1)
