"""The conformance suite on DynamoDB Local."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent_sessions.clock import Clock
from agent_sessions.stores.base import Store
from agent_sessions.testing import FakeClock, LostReplies, StoreConformance
from agent_sessions.testing.conformance.faults import Fault
from tests.dynamodb import DynamoDB


class TestDynamoDBStore(StoreConformance):
    """Each store with connections of its own, on DynamoDB Local."""

    EXAMPLES = 15

    @pytest.fixture(autouse=True)
    def _start(self, dynamodb: DynamoDB, clock: FakeClock) -> None:
        self.dynamodb, self.time = dynamodb, clock

    def make_store(self, clock: Clock) -> Store:
        store: Store = self.dynamodb.store(clock)
        return store
