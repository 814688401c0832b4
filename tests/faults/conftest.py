"""The backends under fault tests, as settings: what a process needs to reach the same one as another."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent_sessions import Settings
from agent_sessions.settings import DynamoDBSettings, RedisSettings, SQLiteSettings
from tests.dynamodb import DynamoDB


@pytest.fixture(params=["sqlite", "redis", "redis-cluster", "dynamodb"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """An empty backend. Another process gets these settings, which can be pickled, and opens a store by them."""
    if request.param == "sqlite":
        path = tmp_path / "sessions.db"
        yield Settings(type="sqlite", sqlite=SQLiteSettings(path=path))
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    elif request.param == "dynamodb":
        made: DynamoDB = request.getfixturevalue("dynamodb")
        made.request("UpdateTimeToLive", TimeToLiveSpecification={"Enabled": True, "AttributeName": "x"})
        yield Settings(type="dynamodb", dynamodb=DynamoDBSettings(table_name=made.table, endpoint_url=made.url))
    elif request.param == "redis-cluster":
        cluster = request.getfixturevalue("redis_cluster")
        cluster.flush()
        yield Settings(type="redis", redis=RedisSettings(url=cluster.url, cluster=True, prefix="faults:"))
    else:
        url = request.getfixturevalue("redis_url")
        yield Settings(type="redis", redis=RedisSettings(url=url, prefix="faults:"))
