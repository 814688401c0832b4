"""The conformance suite on DynamoDB Local."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent_sessions.clock import Clock
from agent_sessions.errors import StoreUnavailableError
from agent_sessions.stores.base import Commit, Key, Store
from agent_sessions.testing import FakeClock, LostReplies, StoreConformance
from agent_sessions.testing.conformance.faults import Fault
from tests.dynamodb import DynamoDB

from .dynamodb_proxy import WRITES, Decision, proxy


class TestDynamoDBStore(LostReplies, StoreConformance):
    """Each store with connections of its own, on DynamoDB Local."""

    EXAMPLES = 8

    @pytest.fixture(autouse=True)
    def _start(self, dynamodb: DynamoDB, clock: FakeClock) -> None:
        self.dynamodb, self.time = dynamodb, clock

    def make_store(self, clock: Clock) -> Store:
        store: Store = self.dynamodb.store(clock)
        return store

    @asynccontextmanager
    async def losing(self, fault: Fault) -> AsyncIterator[Store]:
        def decide(operation: str, arguments: object) -> Decision:
            if operation not in WRITES:
                return "pass"
            return "lose the request" if fault == "request" else "lose the reply"

        async with proxy(self.dynamodb.port, decide) as url:
            store: Store = self.dynamodb.store(self.time, url=url)
            yield store
            await store.aclose()

    async def _send(self, key: Key, commit: Commit, fault: Fault) -> None:
        """Only writes are lost, since a commit may have to read before: so a repeated one is recognised by reading."""
        async with self.losing(fault) as losing:
            try:
                assert (await losing.commit(key, commit)).repeated
            except StoreUnavailableError:
                return
