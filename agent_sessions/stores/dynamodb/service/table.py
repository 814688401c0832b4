"""The table: one definition, which the store makes, checks, and prints for CloudFormation and Terraform."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.dynamodb.service.requests import Requests

logger = logging.getLogger("agent_sessions")

TTL_ATTRIBUTE = "x"


class Index(NamedTuple):
    """An index: of the records alone, since only they have its keys."""

    name: str
    partition: str
    sort: str
    projected: Sequence[str]
    """What moves in an index costs a write; what is here and changes, costs one, too."""


_TIMES = ["e", "g", "i", "n"]
TENANT_BY_ACTIVITY = Index("by_tenant", "t", "a", _TIMES)
USER_BY_ACTIVITY = Index("by_user", "u", "a", _TIMES)
TENANT_BY_START = Index("by_tenant_start", "t", "s", ["n"])
USER_BY_START = Index("by_user_start", "u", "s", ["n"])
RUNNING_OUT = Index("by_end", "t", "w", ["n"])

_INDEXES = (TENANT_BY_ACTIVITY, USER_BY_ACTIVITY, TENANT_BY_START, USER_BY_START, RUNNING_OUT)
_KEY_TYPES = {"p": "S", "k": "B", "t": "S", "u": "S", "a": "N", "s": "N", "w": "N"}
_READY_S = 60.0
_POLL_S = 0.5


def definition(table: str) -> dict[str, Any]:
    """The table as `CreateTable` takes it. Its TTL is set when it is there."""
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": name, "AttributeType": kind} for name, kind in sorted(_KEY_TYPES.items())
        ],
        "KeySchema": _schema("p", "k"),
        "GlobalSecondaryIndexes": [
            {
                "IndexName": index.name,
                "KeySchema": _schema(index.partition, index.sort),
                "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(index.projected)},
            }
            for index in _INDEXES
        ],
    }


def _schema(partition: str, sort: str) -> list[dict[str, str]]:
    return [{"AttributeName": partition, "KeyType": "HASH"}, {"AttributeName": sort, "KeyType": "RANGE"}]


def cloudformation(table: str) -> str:
    """A CloudFormation template with the table, in JSON."""
    properties = definition(table) | {
        "TimeToLiveSpecification": {"AttributeName": TTL_ATTRIBUTE, "Enabled": True},
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
    }
    resource = {
        "Type": "AWS::DynamoDB::Table",
        "DeletionPolicy": "Retain",
        "UpdateReplacePolicy": "Retain",
        "Properties": properties,
    }
    template = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "The table in which agent-sessions keeps sessions.",
        "Resources": {"AgentSessions": resource},
    }
    return json.dumps(template, indent=2) + "\n"


def terraform(table: str) -> str:
    """A Terraform configuration with the table."""
    wanted = definition(table)
    hash_key, range_key = (key["AttributeName"] for key in wanted["KeySchema"])
    lines = [
        'resource "aws_dynamodb_table" "agent_sessions" {',
        f"  name         = {json.dumps(table)}",
        f"  billing_mode = {json.dumps(wanted['BillingMode'])}",
        f"  hash_key     = {json.dumps(hash_key)}",
        f"  range_key    = {json.dumps(range_key)}",
    ]
    for attribute in wanted["AttributeDefinitions"]:
        lines += [
            "",
            "  attribute {",
            f"    name = {json.dumps(attribute['AttributeName'])}",
            f"    type = {json.dumps(attribute['AttributeType'])}",
            "  }",
        ]
    for index in wanted["GlobalSecondaryIndexes"]:
        hash_key, range_key = (key["AttributeName"] for key in index["KeySchema"])
        lines += [
            "",
            "  global_secondary_index {",
            f"    name               = {json.dumps(index['IndexName'])}",
            f"    hash_key           = {json.dumps(hash_key)}",
            f"    range_key          = {json.dumps(range_key)}",
            f"    projection_type    = {json.dumps(index['Projection']['ProjectionType'])}",
            f"    non_key_attributes = {json.dumps(index['Projection']['NonKeyAttributes'])}",
            "  }",
        ]
    lines += ["", "  ttl {", f"    attribute_name = {json.dumps(TTL_ATTRIBUTE)}", "    enabled        = true", "  }"]
    lines += ["", "  point_in_time_recovery {", "    enabled = true", "  }"]
    lines += ["", "  lifecycle {", "    prevent_destroy = true", "  }", "}"]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------- on the service


async def create(requests: Requests) -> bool:
    """Make the table, and wait until it is ready; False if it was there already, which is checked then.

    Raises:
        StoreUnavailableError: It can't be made, or what is there is not as it should be.
    """
    made = False
    if await _described(requests) is None:
        try:
            await requests.call_unchecked("CreateTable", **definition(requests.table))
            made = True
        except StoreUnavailableError as error:
            if not _is_in_use(error):  # another process made it in this moment
                raise
    await _until_active(requests)
    if await _ttl_attribute(requests) is None:
        specification = {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}
        try:
            await requests.call_unchecked("UpdateTimeToLive", TimeToLiveSpecification=specification)
        except StoreUnavailableError:
            if await _ttl_attribute(requests) is None:
                raise
    await check(requests)
    return made


async def check(requests: Requests) -> None:
    """Look whether the table is as the store needs it.

    Raises:
        StoreUnavailableError: It is missing, or what is wrong with it.
    """
    table = await _described(requests)
    if table is None:
        raise _missing(requests)
    problems = _problems(table)
    ttl = await _ttl_attribute(requests)
    if ttl is None:
        problems.append(f"its TTL is off; it should be on, by the attribute {TTL_ATTRIBUTE!r}")
    elif ttl != TTL_ATTRIBUTE:
        problems.append(f"its TTL goes by the attribute {ttl!r} instead of {TTL_ATTRIBUTE!r}")
    if problems:
        raise StoreUnavailableError(
            f"the table {requests.table!r} is not as agent-sessions needs it: {'; '.join(problems)}. "
            "`agent-sessions dynamodb cloudformation` and `terraform` print how it should be",
            maybe_done=False,
        )


async def check_if_allowed(requests: Requests) -> None:
    """The same, but for a role that may not look: then the first use of what is missing will tell."""
    try:
        await check(requests)
    except StoreUnavailableError as error:
        if not _is_denied(error):
            raise
        logger.warning(
            "the table %r could not be checked: the role or user lacks dynamodb:DescribeTable or "
            "dynamodb:DescribeTimeToLive",
            requests.table,
        )


def _problems(table: dict[str, Any]) -> list[str]:
    problems = []
    wanted = definition(table["TableName"])
    types = {attribute["AttributeName"]: attribute["AttributeType"] for attribute in table["AttributeDefinitions"]}
    expected, found = _keys(wanted["KeySchema"], _KEY_TYPES), _keys(table["KeySchema"], types)
    if found != expected:
        problems.append(f"its key is {found} instead of {expected}")
    indexes = {index["IndexName"]: index for index in table.get("GlobalSecondaryIndexes", [])}
    for index in wanted["GlobalSecondaryIndexes"]:
        name = index["IndexName"]
        if name not in indexes:
            problems.append(f"the index {name!r} is missing")
            continue
        expected, found = _keys(index["KeySchema"], _KEY_TYPES), _keys(indexes[name]["KeySchema"], types)
        if found != expected:
            problems.append(f"the key of the index {name!r} is {found} instead of {expected}")
        projection, projected = indexes[name]["Projection"], index["Projection"]["NonKeyAttributes"]
        if projection["ProjectionType"] != "ALL" and not {*projected} <= {*projection.get("NonKeyAttributes", [])}:
            problems.append(f"the index {name!r} does not hold the attributes {projected}")
    return problems


def _keys(schema: list[dict[str, str]], types: dict[str, str]) -> str:
    return " and ".join(f"{key['AttributeName']} ({types.get(key['AttributeName'])})" for key in schema)


async def _described(requests: Requests) -> dict[str, Any] | None:
    try:
        reply = await requests.call_unchecked("DescribeTable")
    except StoreUnavailableError as error:
        if code_of(error) == "ResourceNotFoundException":
            return None
        raise
    return reply["Table"]  # type: ignore[no-any-return]


async def _ttl_attribute(requests: Requests) -> str | None:
    described = (await requests.call_unchecked("DescribeTimeToLive"))["TimeToLiveDescription"]
    return described.get("AttributeName") if described["TimeToLiveStatus"] in ("ENABLED", "ENABLING") else None


async def _until_active(requests: Requests) -> None:
    give_up = asyncio.get_running_loop().time() + _READY_S
    while True:
        table = await _described(requests)
        indexes = (table or {}).get("GlobalSecondaryIndexes", [])
        if table is not None and {table["TableStatus"], *(index["IndexStatus"] for index in indexes)} == {"ACTIVE"}:
            return
        if asyncio.get_running_loop().time() > give_up:
            raise StoreUnavailableError(f"the table {requests.table!r} did not become ready within {_READY_S:g} s")
        await asyncio.sleep(_POLL_S)


def code_of(error: StoreUnavailableError) -> str:
    """The service's own word for an error; empty if it has none."""
    answer: Any = getattr(error.__cause__, "response", {})
    return str(answer.get("Error", {}).get("Code", ""))


def _is_in_use(error: StoreUnavailableError) -> bool:
    return code_of(error) == "ResourceInUseException"


def _is_denied(error: StoreUnavailableError) -> bool:
    return code_of(error) == "AccessDeniedException"


def _missing(requests: Requests) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"there is no table {requests.table!r} in this account and region: make it with `agent-sessions dynamodb "
        "create-table`, or set AK_SESSION__DYNAMODB__CREATE_TABLE=true",
        maybe_done=False,
    )
