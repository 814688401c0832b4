"""The conformance suite over our own stores, with encryption before each."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.stores.encryption import EncryptedStore, Keyring
from agent_sessions.stores.sqlite import SQLiteStore
from agent_sessions.testing import ServedInOrder, StoreConformance

from . import test_conformance as plain

if TYPE_CHECKING:
    from tests.dynamodb import DynamoDB

KEYS = [secrets.token_urlsafe(32), secrets.token_urlsafe(32)]


def encrypted(store: Store) -> Store:
    return EncryptedStore(store, Keyring(KEYS))


class TestEncryptedMemory(plain.TestMemoryStore):
    EXAMPLES = 20

    def make_store(self, clock: Clock) -> Store:
        return encrypted(super().make_store(clock))


class TestEncryptedSQLite(ServedInOrder, StoreConformance):
    EXAMPLES = 10

    @pytest.fixture(autouse=True)
    def _start(self, tmp_path: Path) -> None:
        self.path = tmp_path / "sessions.db"

    def make_store(self, clock: Clock) -> Store:
        return encrypted(SQLiteStore(self.path, synchronous="normal", clock=clock))


class TestEncryptedRedis(plain.TestRedisStore):
    EXAMPLES = 10

    def connect(self, url: str, clock: Clock) -> Store:
        return encrypted(super().connect(url, clock))


class TestEncryptedRedisCluster(plain.TestRedisCluster):
    EXAMPLES = 5

    def connect(self, clock: Clock, **options: Any) -> Store:
        return encrypted(super().connect(clock, **options))


class TestEncryptedDynamoDB(StoreConformance):
    EXAMPLES = 3

    @pytest.fixture(autouse=True)
    def _start(self, dynamodb: DynamoDB) -> None:
        self.dynamodb = dynamodb

    def make_store(self, clock: Clock) -> Store:
        return encrypted(self.dynamodb.store(clock))
