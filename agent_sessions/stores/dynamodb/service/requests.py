"""Requests to DynamoDB: sent again when throttled, for a bounded time; every error as what it means.

botocore's own retries are off: they sleep as long as they like. Sending again is safe. Reads are; each write has a
condition that its own success makes false, or leads to the same result however often it is carried out; and a
transaction carries a token of its own, under which DynamoDB carries it out once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from secrets import token_hex
from typing import Any, TypeAlias, TypeVar

import aiohttp
from botocore import xform_name
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.exceptions import HTTPClientError as BotoHTTPError

from agent_sessions.errors import CommitTooLargeError, StoreUnavailableError
from agent_sessions.stores.dynamodb.layout.keys import RECORD, Span
from agent_sessions.stores.dynamodb.service.clients import Clients, LoopClient

Item: TypeAlias = dict[str, Any]
"""An item as the service has it: `{"p": {"S": "..."}, "v": {"N": "1"}}`."""

T = TypeVar("T")

MOST_BYTES = 720_000
"""The most bytes of payloads in one request. In base64, as they are sent, they stay below 1 MiB: more in one piece
would hold up the event loop."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_BROKEN_TRIES = 3
_BATCH_READ, _BATCH_WRITE = 100, 25
_AT_ONCE = 8

_THROTTLED = {
    "InternalServerError",
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ThrottlingException",
    "TransactionConflictException",
    "TransactionInProgressException",
}
_CANCELLED_FOR_A_WHILE = {"None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}


class Refused(Exception):
    """The condition of a write does not hold.

    Args:
        item: What is there instead.
        maybe_done: Whether it may be this very write that it does not hold after: it was sent before, and not answered.
    """

    def __init__(self, item: Item | None, *, maybe_done: bool) -> None:
        super().__init__()
        self.item = item or None
        self.maybe_done = maybe_done


class Requests:
    """What the store asks of one table."""

    def __init__(self, clients: Clients, table: str, patience_s: float) -> None:
        self.table = table
        self._clients = clients
        self._patience_s = patience_s
        self.before_first_use: Callable[[Requests], Awaitable[object]] | None = None
        """Awaited before the first request of all."""

    def queue(self, partition: str) -> asyncio.Lock:
        """Where those of this event loop stand who write to a partition and were refused for others who did.

        Together they would refuse each other again and again. One at a time, each goes on where the last one ended.
        """
        queues = self._clients.current().queues
        queue = queues.get(partition)
        if queue is None:
            queue = queues[partition] = asyncio.Lock()
        return queue

    # ------------------------------------------------------------------------------------------------- single items

    async def get(self, partition: str, sort_key: bytes = RECORD) -> Item | None:
        """An item, as it is now."""
        reply = await self.call("GetItem", Key=item_key(partition, sort_key), ConsistentRead=True)
        return reply.get("Item")

    async def update(
        self, partition: str, expression: str, values: Item, condition: str, *, sort_key: bytes = RECORD
    ) -> Item:
        """Change an item under a condition, and return it; `Refused` if the condition does not hold."""
        arguments: dict[str, Any] = {"ExpressionAttributeValues": values} if values else {}
        reply = await self.call(
            "UpdateItem",
            Key=item_key(partition, sort_key),
            UpdateExpression=expression,
            ConditionExpression=condition,
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **arguments,
        )
        return reply["Attributes"]  # type: ignore[no-any-return]

    async def transact(self, writes: Sequence[Item]) -> None:
        """Carry out all writes or none; `Refused`, with the item of the first, if a condition does not hold."""
        for write in writes:
            for operation in write.values():
                operation["TableName"] = self.table
        await self.call("TransactWriteItems", TransactItems=list(writes), ClientRequestToken=token_hex(16))

    # ------------------------------------------------------------------------------------------------- many items

    async def query(
        self,
        partition: str,
        span: Span,
        *,
        reverse: bool = False,
        limit: int | None = None,
        only: str | None = None,
    ) -> AsyncGenerator[list[Item], None]:
        """Read the items of a range, as they are now, page by page.

        Args:
            partition: Where they are.
            span: The range.
            reverse: Whether to begin at its end.
            limit: How many to read at a time.
            only: The attributes that are wanted.
        """
        if span[0] > span[1]:
            return
        arguments: dict[str, Any] = {
            "KeyConditionExpression": "p = :p AND k BETWEEN :low AND :high",
            "ExpressionAttributeValues": {":p": {"S": partition}, ":low": {"B": span[0]}, ":high": {"B": span[1]}},
            "ConsistentRead": True,
            "ScanIndexForward": not reverse,
        }
        if limit is not None:
            arguments["Limit"] = limit
        if only is not None:
            arguments["ProjectionExpression"] = only
        async for reply in self.pages("Query", **arguments):
            yield reply["Items"]

    async def query_all(self, partition: str, span: Span, *, only: str | None = None) -> list[Item]:
        """Read all items of a range, in their order."""
        return [item async for page in self.query(partition, span, only=only) for item in page]

    async def pages(self, operation: str, **arguments: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Send a Query or a Scan, and go on where each answer ended."""
        while True:
            reply = await self.call(operation, **arguments)
            yield reply
            if "LastEvaluatedKey" not in reply:
                return
            arguments["ExclusiveStartKey"] = reply["LastEvaluatedKey"]

    async def get_all(self, keys: Sequence[tuple[str, bytes]], *, only: str | None = None) -> dict[Any, Item]:
        """The items of these keys that exist, by (partition, sort key)."""
        found: dict[Any, Item] = {}
        left = [item_key(*key) for key in dict.fromkeys(keys)]
        give_up, pause = self._give_up_at(), _FIRST_PAUSE_S
        while left:
            asked: dict[str, Any] = {"Keys": left[:_BATCH_READ], "ConsistentRead": True}
            if only is not None:
                asked["ProjectionExpression"] = f"p, k, {only}"
            reply = await self.call("BatchGetItem", RequestItems={self.table: asked})
            items = reply["Responses"].get(self.table, [])
            found.update(((item["p"]["S"], item["k"]["B"]), item) for item in items)
            unanswered = reply.get("UnprocessedKeys", {}).get(self.table, {}).get("Keys", [])
            left = unanswered + left[_BATCH_READ:]
            if unanswered and not items:
                pause = await self._rest_until(give_up, pause)
            else:
                give_up, pause = self._give_up_at(), _FIRST_PAUSE_S
        return found

    async def put_all(self, items: Sequence[Item]) -> None:
        """Put items, in no order and without conditions."""
        await self._write_all([{"PutRequest": {"Item": item}} for item in items])

    async def delete_all(self, keys: Sequence[tuple[str, bytes]]) -> None:
        """Delete items, in no order; those that do not exist are passed over."""
        await self._write_all([{"DeleteRequest": {"Key": item_key(*key)}} for key in keys])

    async def _write_all(self, writes: list[Item]) -> None:
        batches: list[list[Item]] = [[]]
        size = 0
        for write in writes:
            size += _size(write)
            if len(batches[-1]) == _BATCH_WRITE or (size > MOST_BYTES and batches[-1]):
                batches.append([])
                size = _size(write)
            batches[-1].append(write)
        await gather([partial(self._write_batch, batch) for batch in batches if batch])

    async def _write_batch(self, batch: list[Item]) -> None:
        give_up, pause = self._give_up_at(), _FIRST_PAUSE_S
        while batch:
            reply = await self.call("BatchWriteItem", RequestItems={self.table: batch})
            batch = reply.get("UnprocessedItems", {}).get(self.table, [])
            if batch:
                pause = await self._rest_until(give_up, pause)

    def _give_up_at(self) -> float:
        return asyncio.get_running_loop().time() + self._patience_s

    async def _rest_until(self, give_up: float, pause: float) -> float:
        if asyncio.get_running_loop().time() + pause > give_up:
            raise StoreUnavailableError(f"DynamoDB throttles the table {self.table!r}")
        return await _rest(pause)

    # ------------------------------------------------------------------------------------------------- one request

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Send a request, again where that may help, and return the answer."""
        if self.before_first_use is not None:
            await self._first_use(self._clients.current())
        return await self.call_unchecked(operation, **arguments)

    async def call_unchecked(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """The same, of a table that nobody has looked at."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience_s
        pause, broken, maybe_done = _FIRST_PAUSE_S, 0, False
        if operation not in ("BatchGetItem", "BatchWriteItem", "TransactWriteItems"):
            arguments["TableName"] = self.table
        while True:
            try:
                client = await self._clients.current().get()
                return await getattr(client, xform_name(operation))(**arguments)  # type: ignore[no-any-return]
            except ClientError as error:
                if not _passes(error):
                    raise self.meaning(error, operation, maybe_done=maybe_done) from error
                maybe_done = maybe_done or _status(error) >= 500
                failure: Exception = error
            except (BotoConnectionError, BotoHTTPError, aiohttp.ClientError, OSError) as error:
                broken += 1
                maybe_done = maybe_done or not isinstance(error, (EndpointConnectionError, ConnectTimeoutError))
                if broken == _BROKEN_TRIES:
                    raise self.meaning(error, operation, maybe_done=maybe_done) from error
                failure = error
            except BotoCoreError as error:
                raise self.meaning(error, operation, maybe_done=maybe_done) from error
            if loop.time() + pause > give_up:
                raise self.meaning(failure, operation, maybe_done=maybe_done) from failure
            pause = await _rest(pause)

    async def _first_use(self, place: LoopClient) -> None:
        async with place.checking:
            if self.before_first_use is not None:
                await self.before_first_use(self)
                self.before_first_use = None

    def meaning(self, error: Exception, operation: str, *, maybe_done: bool) -> Exception:
        """What an error of botocore is for our callers. Its own text, which may carry arguments, stays in the cause."""
        if isinstance(error, ClientError):
            return self._meaning_of_an_answer(error, operation, maybe_done)
        text = next((text for kind, text in _REASONS if isinstance(error, kind)), "DynamoDB can't be used")
        return StoreUnavailableError(f"{text} (table {self.table!r})", maybe_done=maybe_done)

    def _meaning_of_an_answer(self, error: ClientError, operation: str, maybe_done: bool) -> Exception:
        answer: Any = error.response
        code, text = answer["Error"]["Code"], answer["Error"].get("Message", "")
        if code == "ConditionalCheckFailedException":
            return Refused(answer.get("Item"), maybe_done=maybe_done)
        if code == "TransactionCanceledException":
            reasons = answer.get("CancellationReasons", [])
            codes = {reason["Code"] for reason in reasons}
            if "ConditionalCheckFailed" in codes:
                return Refused(reasons[0].get("Item"), maybe_done=maybe_done)
            if codes & {"ItemCollectionSizeLimitExceeded", "ValidationError"}:
                return CommitTooLargeError("the commit has an item that is larger than DynamoDB takes")
        if code == "ValidationException" and "schema" in text:
            code = "wrong keys"
        elif code == "ValidationException" and "specified index" in text:
            code = "no index"
        meaning = _CODES.get(code, f"DynamoDB refused {{operation}} on the table {{table!r}} ({code})")
        return StoreUnavailableError(meaning.format(table=self.table, operation=operation), maybe_done=maybe_done)


async def gather(work: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Do all of these, not too many at a time, and return what they return."""
    if len(work) == 1:
        return [await work[0]()]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(job: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await job()

    tasks = [asyncio.ensure_future(one(job)) for job in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def item_key(partition: str, sort_key: bytes = RECORD) -> Item:
    """The key of an item."""
    return {"p": {"S": partition}, "k": {"B": sort_key}}


async def _rest(pause: float) -> float:
    """Wait up to so long (full jitter: those who were refused together come back apart); return the next pause."""
    await asyncio.sleep(pause * random.random())
    return min(pause * 2, _LONGEST_PAUSE_S)


def _passes(error: ClientError) -> bool:
    """Whether what was refused may be accepted a little later."""
    answer: Any = error.response
    code = answer["Error"]["Code"]
    if code != "TransactionCanceledException":
        return code in _THROTTLED or _status(error) >= 500
    codes = {reason.get("Code", "None") for reason in answer.get("CancellationReasons", [])}
    return bool(codes - {"None"}) and codes <= _CANCELLED_FOR_A_WHILE


def _status(error: ClientError) -> int:
    answer: Any = error.response
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _size(write: Item) -> int:
    item = write.get("PutRequest", {}).get("Item", {})
    return sum(len(value.get("B", b"")) for value in item.values()) + 64


_CHECK = "`agent-sessions dynamodb check` tells what it should be"
_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the host, container or function a role"
)
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (NoCredentialsError, f"there are no AWS credentials: {_CREDENTIALS}"),
    (PartialCredentialsError, f"the AWS credentials are incomplete: {_CREDENTIALS}"),
    (CredentialRetrievalError, f"the AWS credentials could not be had from their source: {_CREDENTIALS}"),
    (NoRegionError, "no AWS region is known: set AK_SESSION__DYNAMODB__REGION or AWS_REGION"),
    (EndpointConnectionError, "DynamoDB can't be reached: check the region, the endpoint and the network"),
    (ConnectTimeoutError, "DynamoDB can't be reached in time: check the region, the endpoint and the network"),
    (ReadTimeoutError, "DynamoDB did not answer in time"),
    (BotoConnectionError, "the connection to DynamoDB broke"),
    (BotoHTTPError, "the connection to DynamoDB broke"),
    (OSError, "DynamoDB can't be reached"),
)
_THROTTLED_TEXT = "DynamoDB throttles the table {table!r}: raise its capacity, or make it on-demand"
_DENIED = "AWS refuses {operation} on the table {table!r}: the role or user lacks the permission (IAM policy)"
_SIGNATURE = "AWS refuses the credentials: they are wrong, or belong to another account or region (table {table!r})"
_CODES = {
    "wrong keys": f"the table {{table!r}} does not have the keys that the store needs: {_CHECK}",
    "no index": f"the table {{table!r}} lacks an index: {_CHECK}",
    "ResourceNotFoundException": "there is no table {table!r} in this account and region: "
    "make it with `agent-sessions dynamodb create-table`, or set AK_SESSION__DYNAMODB__CREATE_TABLE=true",
    "AccessDeniedException": _DENIED,
    "UnrecognizedClientException": _SIGNATURE,
    "InvalidSignatureException": _SIGNATURE,
    "IncompleteSignature": _SIGNATURE,
    "MissingAuthenticationToken": _SIGNATURE,
    "ExpiredTokenException": "the AWS credentials have expired (table {table!r}): renew them",
    "ExpiredToken": "the AWS credentials have expired (table {table!r}): renew them",
    "ProvisionedThroughputExceededException": _THROTTLED_TEXT,
    "RequestLimitExceeded": _THROTTLED_TEXT,
    "ThrottlingException": _THROTTLED_TEXT,
    "LimitExceededException": _THROTTLED_TEXT,
    "TransactionConflictException": "other writes to the same session keep coming in between (table {table!r})",
    "TransactionCanceledException": "other writes to the same session keep coming in between (table {table!r})",
    "TransactionInProgressException": "DynamoDB is still busy with the same commit (table {table!r})",
    "InternalServerError": "DynamoDB has an internal error (table {table!r})",
    "ServiceUnavailable": "DynamoDB is not available (table {table!r})",
}
