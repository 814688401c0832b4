"""DynamoDB Local, Amazon's own, as a process; and a meter for what requests cost."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port

FOLDER = Path(__file__).parent.parent / ".venv" / "dynamodb-local"
JAR = FOLDER / "DynamoDBLocal.jar"
START_S = 60.0

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What DynamoDB Local takes. It tells accounts apart by the access key, and regions, and looks at no signature."""

_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=local/20250101/eu-west-1/dynamodb/aws4_request, SignedHeaders=host, Signature=none"
)


@contextmanager
def dynamodb_local() -> Iterator[int]:
    """Run it on a free loopback port, with nothing in it, and yield the port."""
    port = free_port()
    command = ["java", "-Xmx512m", "-Djava.library.path=./DynamoDBLocal_lib", "-jar", JAR.name, "-inMemory", "-port"]
    server = subprocess.Popen([*command, str(port)], cwd=FOLDER, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
            raise TimeoutError("DynamoDB Local did not start")
        time.sleep(0.05)


def request(port: int, operation: str, **arguments: Any) -> Any:
    """Send a request beside the client under test. Binary values are in base64 here."""
    headers = {
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Target": f"DynamoDB_20120810.{operation}",
        "Authorization": _AUTHORIZATION,
    }
    sent = urllib.request.Request(f"http://127.0.0.1:{port}", json.dumps(arguments).encode(), headers)
    with urllib.request.urlopen(sent, timeout=30) as answer:
        return json.load(answer)


class Meter:
    """Counts requests, and computes what they cost by the rules that AWS documents.

    DynamoDB Local reports wrong figures for transactions. A write costs a unit for each started KB of the item, in a
    transaction two; a read, one for each started 4 KB, of an index half of it; a new place in an index, one to leave
    the old and one to take the new; another value in an index, one.
    """

    def __init__(self, port: int, table: str) -> None:
        self._port, self._table = port, table
        self._records: dict[str, dict[str, Any]] = {}
        self.reset()

    def reset(self) -> None:
        """Start again from nothing."""
        self.requests: Counter[str] = Counter()
        self.write_units = self.index_units = 0
        self.read_units = 0.0

    def make_session(self) -> Any:
        """A session of aiobotocore of which all requests are counted."""
        from aiobotocore.session import get_session

        session = get_session()
        session.register("before-parameter-build.dynamodb", self._before)
        session.register("after-call.dynamodb", self._after)
        return session

    def _before(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["metered"] = params

    def _after(self, parsed: dict[str, Any], model: Any, context: dict[str, Any], **_: Any) -> None:
        params = context["metered"]
        self.requests[model.name] += 1
        if "Error" in parsed:
            return
        match model.name:
            case "UpdateItem":
                self.write_units += _started(size(parsed["Attributes"]), 1024)
                self._count_places(parsed["Attributes"])
            case "GetItem":
                self.read_units += max(1, _started(size(parsed.get("Item", {})), 4096))
            case "Query":
                units = max(1, _started(sum(map(size, parsed.get("Items", []))), 4096))
                self.read_units += units / 2 if "IndexName" in params else units
            case "BatchGetItem":
                self.read_units += sum(
                    _started(size(item), 4096) for items in parsed["Responses"].values() for item in items
                )
            case "TransactWriteItems":
                for write in params["TransactItems"]:
                    self._count_write(write)

    def _count_write(self, write: dict[str, Any]) -> None:
        if "Put" in write:
            self.write_units += 2 * _started(size(write["Put"]["Item"]), 1024)
        elif "Update" in write:
            update = write["Update"]
            key = {
                "p": update["Key"]["p"],
                "k": {"B": base64.b64encode(update["Key"]["k"]["B"]).decode()},
            }
            item = request(self._port, "GetItem", TableName=self._table, Key=key, ConsistentRead=True)["Item"]
            self.write_units += 2 * _started(size(item), 1024)
            self._count_places(item)
        else:
            self.write_units += 2

    def _count_places(self, item: dict[str, Any]) -> None:
        """What a record's places in the indexes cost, by what was last seen of it."""
        if item["k"]["B"] not in (b"R", base64.b64encode(b"R").decode()):
            return
        item = {name: next(iter(value.values())) for name, value in item.items() if "B" not in value}
        known = self._records.get(item["p"], {})
        self._records[item["p"]] = item
        for keys, projected in _indexes():
            old, new = ([seen[name] for name in keys if name in seen] for seen in (known, item))
            if old != new:
                self.index_units += (len(old) == len(keys)) + (len(new) == len(keys))
            elif len(new) == len(keys):
                self.index_units += any(known.get(name) != item.get(name) for name in projected)


def _indexes() -> list[tuple[list[str], list[str]]]:
    """The keys and the other attributes of each index."""
    from agent_sessions.stores.dynamodb.service.table import definition  # which needs aiobotocore

    return [
        ([key["AttributeName"] for key in index["KeySchema"]], index["Projection"]["NonKeyAttributes"])
        for index in definition("any")["GlobalSecondaryIndexes"]
    ]


def size(item: dict[str, dict[str, Any]]) -> int:
    """The size of an item by the documented rule: the bytes of its names and its values."""
    return sum(len(name) + _value_size(value) for name, value in item.items())


def _value_size(value: dict[str, Any]) -> int:
    ((kind, held),) = value.items()
    if kind == "S":
        return len(held.encode())
    if kind == "N":
        return math.ceil(len(held.strip("-").rstrip("0")) / 2) + 1
    if kind == "BS":
        return sum(map(_bytes, held))
    return _bytes(held)


def _bytes(held: str | bytes) -> int:
    return len(held) if isinstance(held, bytes) else len(base64.b64decode(held))


def _started(size: int, unit: int) -> int:
    return math.ceil(size / unit)
