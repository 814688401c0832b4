"""DynamoDB Local as a fixture. Each test has a table of its own."""

from __future__ import annotations

import base64
import importlib.util
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import pytest

from agent_sessions.clock import Clock
from tests.dynamodb_local import CREDENTIALS, JAR, Meter, dynamodb_local, request

RECORD = base64.b64encode(b"R").decode()


@dataclass
class DynamoDB:
    """A table in a running DynamoDB Local."""

    port: int
    table: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def store(self, clock: Clock | None = None, *, url: str | None = None, **options: Any) -> Any:
        """A store on the table. The table's TTL is off, since the service's clock is not that of the test."""
        from agent_sessions.stores.dynamodb import DynamoDBStore  # which needs aiobotocore

        options.setdefault("check_table", False)
        return DynamoDBStore(self.table, endpoint_url=url or self.url, clock=clock, **options)

    def meter(self) -> Meter:
        """A meter; its `make_session` is an option of a store."""
        return Meter(self.port, self.table)

    def request(self, operation: str, **arguments: Any) -> Any:
        """Send a request beside the client under test. Binary values are in base64 here."""
        return request(self.port, operation, TableName=self.table, **arguments)

    def records(self) -> list[dict[str, Any]]:
        """The records in the table."""
        return [item for item in self.items("p, k, v, x, h, g, t, st, pd, gb") if item["k"]["B"] == RECORD]

    def items(self, only: str = "p, k, x") -> list[dict[str, Any]]:
        """These attributes of everything in the table."""
        found: list[dict[str, Any]] = []
        start: dict[str, Any] = {}
        while True:
            page = self.request("Scan", ProjectionExpression=only, ConsistentRead=True, **start)
            found += page["Items"]
            if "LastEvaluatedKey" not in page:
                return found
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def kinds(self) -> dict[str, int]:
        """How many items there are of each kind, but for the records."""
        sort_keys = [base64.b64decode(item["k"]["B"]) for item in self.items()]
        return dict(Counter(chr(sort_key[8]) for sort_key in sort_keys if len(sort_key) > 1))


@pytest.fixture(scope="session")
def dynamodb_port() -> Iterator[int]:
    """The port of the DynamoDB Local that all tests share."""
    from tests.conftest import missing  # which imports this module

    if importlib.util.find_spec("aiobotocore") is None:
        missing("the Python package aiobotocore", "pip install aiobotocore")
    if shutil.which("java") is None:
        missing("java, for DynamoDB Local,", "apt-get install default-jre-headless")
    if not JAR.exists():
        missing("DynamoDB Local", "scripts/setup.sh test")
    with dynamodb_local() as port:
        yield port


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for DynamoDB Local, and none of the developer's own."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        **CREDENTIALS,
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def dynamodb(dynamodb_port: int, aws_credentials: None) -> Iterator[DynamoDB]:
    """A table of this test's own."""
    from agent_sessions.stores.dynamodb.service.table import definition

    made = DynamoDB(dynamodb_port, f"sessions-{token_hex(6)}")
    request(made.port, "CreateTable", **definition(made.table))
    yield made
    made.request("DeleteTable")
