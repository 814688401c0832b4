"""DynamoDB Local, Amazon's own, as a fixture. Each test has a table of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from agent_sessions.clock import Clock

FOLDER = Path(__file__).parent.parent / ".venv" / "dynamodb-local"
START_S = 30.0


@dataclass
class DynamoDB:
    """A running DynamoDB Local, and a table in it."""

    port: int
    table: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def store(self, clock: Clock | None = None, *, url: str | None = None, **options: Any) -> Any:
        """A store on the table. What a test does to the clock must not make the service sweep: the TTL is off."""
        from agent_sessions.stores.dynamodb import DynamoDBStore  # which needs aiobotocore

        options.setdefault("check_table", False)
        return DynamoDBStore(self.table, endpoint_url=url or self.url, clock=clock, **options)

    def request(self, operation: str, **arguments: Any) -> Any:
        """Send a request beside the client under test. Binary values are in base64 here."""
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"DynamoDB_20120810.{operation}",
            "Authorization": _AUTHORIZATION,
        }
        sent = urllib.request.Request(self.url, json.dumps(arguments).encode(), headers)
        with urllib.request.urlopen(sent, timeout=30) as answer:
            return json.load(answer)


# DynamoDB Local tells accounts apart by the access key, and regions; it does not look at the signature.
_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=local/20250101/eu-west-1/dynamodb/aws4_request, SignedHeaders=host, Signature=none"
)


@pytest.fixture(scope="session")
def dynamodb_port() -> Iterator[int]:
    """The port of the DynamoDB Local that all tests share."""
    from tests.conftest import missing  # which imports this module

    if importlib.util.find_spec("aiobotocore") is None:
        missing("the Python package aiobotocore", "pip install aiobotocore")
    if shutil.which("java") is None:
        missing("java, for DynamoDB Local,", "apt-get install default-jre-headless")
    if not (FOLDER / "DynamoDBLocal.jar").exists():
        missing("DynamoDB Local", "scripts/setup.sh test")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["java", "-Xmx512m", "-Djava.library.path=./DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar"]
    server = subprocess.Popen(
        [*command, "-inMemory", "-port", str(port)],
        cwd=FOLDER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(server, port)
        yield port
    finally:
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
        except urllib.error.HTTPError:
            return  # it answers, if only that it wants a signature
        except OSError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail("DynamoDB Local did not start")
        time.sleep(0.05)


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for DynamoDB Local, which takes any; none of the developer's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dynamodb(dynamodb_port: int, aws_credentials: None) -> Iterator[DynamoDB]:
    """A table of this test's own."""
    from agent_sessions.stores.dynamodb.table import definition

    made = DynamoDB(dynamodb_port, f"sessions-{token_hex(6)}")
    made.request("CreateTable", **definition(made.table))
    yield made
    made.request("DeleteTable", TableName=made.table)
