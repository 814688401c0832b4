"""The table: made, checked, printed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from secrets import token_hex
from typing import Any

import pytest
from typer.testing import CliRunner

from agent_sessions.cli import app
from agent_sessions.errors import InvalidError, StoreUnavailableError
from agent_sessions.settings import DynamoDBSettings, Settings
from agent_sessions.stores.base import Key, Store
from agent_sessions.testing.conformance.harness import append, change, read_log
from tests.dynamodb import DynamoDB

KEY = Key("acme", "session", "s-1")


@pytest.fixture
def bare(dynamodb_port: int, aws_credentials: None) -> DynamoDB:
    """The name of a table that is not there."""
    return DynamoDB(dynamodb_port, f"bare-{token_hex(6)}")


def wanted(table: str, **changes: Any) -> dict[str, Any]:
    """The table as it should be, but for this."""
    from agent_sessions.stores.dynamodb.service.table import definition

    return {**definition(table), **changes}


def make(bare: DynamoDB, *, ttl: str | None = "x", **changes: Any) -> None:
    definition = wanted(bare.table, **changes)
    bare.request("CreateTable", **{name: value for name, value in definition.items() if name != "TableName"})
    if ttl is not None:
        bare.request("UpdateTimeToLive", TimeToLiveSpecification={"Enabled": True, "AttributeName": ttl})


async def use(store: Store) -> None:
    """Do something with it."""
    try:
        await store.commit(KEY, change(logs=append(b"1")))
        assert (await read_log(store, KEY))[-1] == b"1"
        assert await store.count("acme", "session") == 1
    finally:
        await store.aclose()


async def test_a_missing_table_is_made_if_wanted(bare: DynamoDB) -> None:
    await use(bare.store(create_table=True))
    await use(bare.store(check_table=True))
    ttl = bare.request("DescribeTimeToLive")["TimeToLiveDescription"]
    assert ttl == {"AttributeName": "x", "TimeToLiveStatus": "ENABLED"}


async def test_several_may_make_it_at_once(bare: DynamoDB) -> None:
    await asyncio.gather(*(use(bare.store(create_table=True)) for _ in range(4)))


async def test_a_missing_table_is_told_with_what_to_do(bare: DynamoDB) -> None:
    with pytest.raises(StoreUnavailableError, match=r"no table 'bare-\w+'.*create-table.*CREATE_TABLE=true") as failure:
        await use(bare.store(check_table=True))
    assert not failure.value.maybe_done


def types_of(*names: str) -> list[dict[str, str]]:
    return [attribute for attribute in wanted("any")["AttributeDefinitions"] if attribute["AttributeName"] in names]


def without_an_index() -> dict[str, Any]:
    """Without the tenants' index."""
    return {"GlobalSecondaryIndexes": wanted("any")["GlobalSecondaryIndexes"][1:]}


def poor_indexes() -> dict[str, Any]:
    """With indexes that do not say when a session goes."""
    indexes = wanted("any")["GlobalSecondaryIndexes"]
    return {"GlobalSecondaryIndexes": [{**index, "Projection": {"ProjectionType": "KEYS_ONLY"}} for index in indexes]}


def other_key() -> dict[str, Any]:
    """With a key of something else."""
    schema = wanted("any")["GlobalSecondaryIndexes"][0]["KeySchema"]
    return {"KeySchema": schema, "AttributeDefinitions": types_of("t", "a", "u", "s", "w")}


@pytest.mark.parametrize(
    ("changes", "ttl", "problem"),
    [
        (dict, None, "its TTL is off"),
        (dict, "expires", "its TTL goes by the attribute 'expires'"),
        (without_an_index, "x", "the index 'by_tenant' is missing"),
        (poor_indexes, "x", "the index 'by_user' does not hold the attributes"),
        (other_key, "x", r"its key is t \(S\) and a \(N\) instead of p \(S\) and k \(B\)"),
    ],
)
async def test_what_is_wrong_with_a_table_is_told(
    bare: DynamoDB, changes: Callable[[], dict[str, Any]], ttl: str | None, problem: str
) -> None:
    make(bare, ttl=ttl, **changes())
    with pytest.raises(StoreUnavailableError, match=problem) as failure:
        await use(bare.store(check_table=True))
    assert not failure.value.maybe_done
    if ttl is not None:
        with pytest.raises(StoreUnavailableError, match=problem):
            await use(bare.store(create_table=True))


async def test_without_a_check_the_first_use_tells(bare: DynamoDB) -> None:
    with pytest.raises(StoreUnavailableError, match=r"no table"):
        await use(bare.store())
    make(bare, **without_an_index())
    with pytest.raises(StoreUnavailableError, match=r"lacks an index"):
        await use(bare.store())


async def test_a_table_must_be_named() -> None:
    from agent_sessions.stores.dynamodb import DynamoDBStore

    with pytest.raises(InvalidError) as failure:
        DynamoDBStore.from_settings(Settings(type="dynamodb"))
    assert failure.value.code == "INVALID_SETTING"
    assert failure.value.field == "AK_SESSION__DYNAMODB__TABLE_NAME"


async def test_settings_make_a_store(bare: DynamoDB) -> None:
    from agent_sessions.stores.dynamodb import DynamoDBStore

    section = DynamoDBSettings(table_name=bare.table, endpoint_url=bare.url, region="eu-west-1", create_table=True)
    await use(DynamoDBStore.from_settings(Settings(type="dynamodb", dynamodb=section)))


# --------------------------------------------------------------------------------------------------- command line


def run(bare: DynamoDB, *arguments: str, **variables: str) -> tuple[int, str, str]:
    variables["AK_SESSION__DYNAMODB__ENDPOINT_URL"] = bare.url
    done = CliRunner().invoke(app, ["dynamodb", *arguments], env=variables)
    return done.exit_code, done.stdout, done.stderr


def run_apart(bare: DynamoDB, *arguments: str) -> tuple[int, str, str]:
    """The same in a process of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AK_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "agent_sessions.cli", "dynamodb", *arguments],
        env={**own, "AK_SESSION__DYNAMODB__ENDPOINT_URL": bare.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_makes_and_checks_the_table(bare: DynamoDB) -> None:
    named = {"AK_SESSION__DYNAMODB__TABLE_NAME": bare.table}
    status, said, complaint = run(bare, "check", **named)
    assert (status, said) == (1, "")
    assert "there is no table" in complaint
    assert run(bare, "create-table", **named) == (0, f"The table {bare.table} is made and ready.\n", "")
    assert run_apart(bare, "create-table", "--table-name", bare.table) == (
        0,
        f"The table {bare.table} was there already, and is as it should be.\n",
        "",
    )
    assert run(bare, "check", **named) == (0, f"The table {bare.table} is as it should be.\n", "")


def test_the_command_says_what_is_missing(bare: DynamoDB) -> None:
    status, said, complaint = run(bare, "check")
    assert (status, said) == (1, "")
    assert "AK_SESSION__DYNAMODB__TABLE_NAME" in complaint
    status, said, complaint = run(bare, "check", "--table-name", "no name")
    assert (status, said) == (1, "")
    assert "--table-name" in complaint


def test_the_cloudformation_template_makes_the_table(bare: DynamoDB) -> None:
    status, printed, _ = run(bare, "cloudformation", "--table-name", bare.table)
    assert status == 0
    (resource,) = json.loads(printed)["Resources"].values()
    assert resource["Type"] == "AWS::DynamoDB::Table"
    properties = resource["Properties"]
    ttl = properties.pop("TimeToLiveSpecification")
    assert properties.pop("PointInTimeRecoverySpecification") == {"PointInTimeRecoveryEnabled": True}
    assert properties.pop("TableName") == bare.table
    bare.request("CreateTable", **properties)
    bare.request("UpdateTimeToLive", TimeToLiveSpecification=ttl)
    asyncio.run(use(bare.store(check_table=True)))


def test_the_terraform_configuration_says_the_same(bare: DynamoDB) -> None:
    status, printed, _ = run(bare, "terraform", "--table-name", bare.table)
    assert status == 0
    definition = wanted(bare.table)
    assert re.findall(r'^  (\w+) += "(.*)"$', printed, re.MULTILINE) == [
        ("name", bare.table),
        ("billing_mode", "PAY_PER_REQUEST"),
        ("hash_key", "p"),
        ("range_key", "k"),
    ]
    attributes = re.findall(r'  attribute \{\n    name = "(\w+)"\n    type = "(\w)"\n  \}', printed)
    assert attributes == [(d["AttributeName"], d["AttributeType"]) for d in definition["AttributeDefinitions"]]
    indexes = re.findall(r"  global_secondary_index \{\n(.*?)\n  \}", printed, re.DOTALL)
    told = [dict(re.findall(r"^    (\w+) += (.*)$", index, re.MULTILINE)) for index in indexes]
    assert [{name: json.loads(value) for name, value in index.items()} for index in told] == [
        {
            "name": index["IndexName"],
            "hash_key": index["KeySchema"][0]["AttributeName"],
            "range_key": index["KeySchema"][1]["AttributeName"],
            "projection_type": index["Projection"]["ProjectionType"],
            "non_key_attributes": index["Projection"]["NonKeyAttributes"],
        }
        for index in definition["GlobalSecondaryIndexes"]
    ]
    assert re.search(r'  ttl \{\n    attribute_name = "x"\n    enabled        = true\n  \}', printed)
    assert printed.count("{") == printed.count("}")


def test_a_printed_table_has_a_name_of_its_own_if_none_is_set(bare: DynamoDB) -> None:
    assert '"TableName": "agent-sessions"' in run(bare, "cloudformation")[1]
