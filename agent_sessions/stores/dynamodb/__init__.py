"""The store on Amazon DynamoDB."""

from __future__ import annotations

from agent_sessions.stores.dynamodb.store import DynamoDBStore

__all__ = ["DynamoDBStore"]
