"""When DynamoDB throttles, refuses, breaks off, or is not there; and loops, threads and forks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from agent_sessions.errors import FormatTooNewError, SessionError, StateLostError, StoreUnavailableError
from agent_sessions.stores.base import Key, Part, Store
from agent_sessions.testing.conformance.harness import append, change, read_log, read_values, take
from tests.dynamodb import RECORD, DynamoDB

from .dynamodb_proxy import Answer, Decide, Decision, proxy, throttled

KEY = Key("acme", "session", "s-1")


@pytest.fixture
async def store(dynamodb: DynamoDB) -> AsyncIterator[Store]:
    store = dynamodb.store()
    yield store
    await store.aclose()


@contextlib.asynccontextmanager
async def behind(dynamodb: DynamoDB, decide: Decide, **options: Any) -> AsyncIterator[Store]:
    """A store behind a proxy."""
    async with proxy(dynamodb.port, decide) as url:
        store = dynamodb.store(url=url, **options)
        yield store
        await store.aclose()


def answer(code: str, **more: Any) -> Answer:
    return Answer(400, {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "no", **more})


# --------------------------------------------------------------------------------------------------- throttling

CONFLICT = answer("TransactionCanceledException", CancellationReasons=[{"Code": "TransactionConflict"}])


@pytest.mark.parametrize(
    "refusal",
    [
        throttled(),
        throttled("ThrottlingException"),
        throttled("TransactionConflictException"),
        CONFLICT,
        Answer(503, {}),
    ],
)
async def test_what_is_throttled_for_a_while_is_done_once(dynamodb: DynamoDB, store: Store, refusal: Answer) -> None:
    refused = 0

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        nonlocal refused
        if random.random() < 0.4:
            refused += 1
            return refusal
        return "pass"

    async with behind(dynamodb, decide) as throttled_store:
        for number in range(5):
            await throttled_store.commit(KEY, change(logs=append(b"%d" % number)))
            assert await take(throttled_store, KEY, "us")
            await throttled_store.release(KEY, "us")
    assert refused
    assert await read_log(store, KEY) == [b"%d" % number for number in range(5)]


async def test_throttling_without_end_is_an_error_after_a_bounded_time(dynamodb: DynamoDB) -> None:
    async with behind(dynamodb, lambda *_: throttled(), patience_s=0.5) as store:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="throttles") as failure:
            await store.open(KEY)
        assert time.monotonic() - begun < 3
        assert not failure.value.maybe_done


@pytest.mark.parametrize("operation", ["BatchGetItem", "BatchWriteItem"])
async def test_a_batch_that_is_left_over_without_end_is_an_error_too(dynamodb: DynamoDB, operation: str) -> None:
    def decide(asked: str, arguments: dict[str, Any]) -> Decision:
        if asked != operation:
            return "pass"
        left_over = arguments["RequestItems"]
        return Answer(200, {"Responses": {}, "UnprocessedKeys": left_over, "UnprocessedItems": left_over})

    async with behind(dynamodb, decide, patience_s=0.5) as store:
        await store.commit(KEY, change())
        reads = operation == "BatchGetItem"
        large = change(values={Part("a", "b"): bytes(500_000)})
        work: Awaitable[object] = store.find("acme", "session") if reads else store.commit(KEY, large)
        with pytest.raises(StoreUnavailableError, match="throttles"):
            await asyncio.wait_for(work, 5)


async def test_what_a_batch_leaves_over_is_sent_again(dynamodb: DynamoDB, store: Store) -> None:
    data = random.Random(3).randbytes(2_000_000)
    left_over = 0

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        nonlocal left_over
        if operation == "BatchWriteItem" and left_over < 3:
            left_over += 1
            return Answer(200, {"UnprocessedItems": arguments["RequestItems"]})
        if operation == "BatchGetItem" and left_over < 6:
            left_over += 1
            return Answer(200, {"Responses": {}, "UnprocessedKeys": arguments["RequestItems"]})
        return "pass"

    async with behind(dynamodb, decide) as throttled_store:
        await throttled_store.commit(KEY, change(values={Part("a", "b"): data}))
        assert len((await throttled_store.find("acme", "session")).found) == 1
    assert left_over == 6
    assert await read_values(store, KEY) == {Part("a", "b"): data}


async def test_a_transaction_is_sent_again_under_its_token(dynamodb: DynamoDB, store: Store) -> None:
    tokens: list[str] = []

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        if operation != "TransactWriteItems":
            return "pass"
        tokens.append(arguments["ClientRequestToken"])
        return "lose the reply" if len(tokens) < 3 else "pass"

    async with behind(dynamodb, decide) as losing:
        committed = await losing.commit(KEY, change(logs=append(b"once")))
        assert not committed.repeated
    assert len(tokens) == 3
    assert len(set(tokens)) == 1
    assert await read_log(store, KEY) == [b"once"]


# --------------------------------------------------------------------------------------------------- not there


async def fails(store: Store, match: str, *, within_s: float = 8.0) -> StoreUnavailableError:
    """Every kind of operation fails, in bounded time, and says why."""
    try:
        for operation in (store.open(KEY), store.find("acme", "session"), store.commit(KEY, change())):
            begun = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=match) as failure:
                await operation
            assert time.monotonic() - begun < within_s
            assert "secret" not in str(failure.value)
    finally:
        await store.aclose()
    return failure.value


async def test_no_credentials(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert not (await fails(dynamodb.store(), "no AWS credentials.*AWS_PROFILE")).maybe_done


async def test_half_of_the_credentials(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "secret-id")
    await fails(dynamodb.store(), "credentials are incomplete")


async def test_no_region(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    await fails(dynamodb.store(), "AK_SESSION__DYNAMODB__REGION")


async def test_a_region_of_the_settings_will_do(dynamodb: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    store = dynamodb.store(region="eu-west-1")
    await store.commit(KEY, change())
    await store.aclose()


async def test_nobody_listens(dynamodb: DynamoDB) -> None:
    error = await fails(dynamodb.store(url="http://127.0.0.1:1"), "can't be reached.*endpoint")
    assert not error.maybe_done


async def test_nobody_answers(dynamodb: DynamoDB) -> None:
    connections = []

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    async with await asyncio.start_server(ignore, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = dynamodb.store(url=f"http://127.0.0.1:{port}", timeout_s=0.2)
        assert (await fails(store, "did not answer in time")).maybe_done
        for writer in connections:
            writer.close()


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("AccessDeniedException", "AWS refuses GetItem.*IAM"),
        ("UnrecognizedClientException", "refuses the credentials"),
        ("ExpiredTokenException", "have expired"),
        ("ResourceNotFoundException", "no table.*create-table"),
        ("SomethingNewException", r"refused GetItem.*\(SomethingNewException\)"),
    ],
)
async def test_what_the_service_refuses_is_told(dynamodb: DynamoDB, code: str, match: str) -> None:
    async with behind(dynamodb, lambda *_: answer(code)) as store:
        with pytest.raises(StoreUnavailableError, match=match) as failure:
            await store.open(KEY)
        assert not failure.value.maybe_done


async def test_a_role_that_may_not_describe_the_table_is_warned(
    dynamodb: DynamoDB, caplog: pytest.LogCaptureFixture
) -> None:
    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        return answer("AccessDeniedException") if operation.startswith("Describe") else "pass"

    with caplog.at_level(logging.WARNING, "agent_sessions"):
        async with behind(dynamodb, decide, check_table=True) as store:
            await store.commit(KEY, change())
            await store.open(KEY)
    (line,) = caplog.messages
    assert "dynamodb:DescribeTable" in line


async def test_after_a_failure_all_goes_on(dynamodb: DynamoDB) -> None:
    is_away = True
    async with behind(dynamodb, lambda *_: "lose the request" if is_away else "pass", check_table=False) as store:
        with pytest.raises(StoreUnavailableError):
            await store.open(KEY)
        is_away = False
        await store.commit(KEY, change(logs=append(b"1")))
        assert await read_log(store, KEY) == [b"1"]


# --------------------------------------------------------------------------------------------------- damage


async def test_a_frame_deleted_by_hand_is_lost_state(dynamodb: DynamoDB, store: Store) -> None:
    for number in range(3):
        await store.commit(KEY, change(logs=append(b"%d" % number)))
    frame = next(item for item in dynamodb.items() if item["k"]["B"] != RECORD)
    dynamodb.request("DeleteItem", Key={"p": frame["p"], "k": frame["k"]})
    with pytest.raises(StateLostError, match="s-1"):
        await read_log(store, KEY)
    assert await read_log(store, KEY, limit=1) == [b"2"]


async def test_a_piece_deleted_by_hand_is_lost_state(dynamodb: DynamoDB, store: Store) -> None:
    await store.commit(KEY, change(values={Part("a", "b"): bytes(800_000)}))
    *_, piece = (item for item in dynamodb.items() if item["k"]["B"] != RECORD)
    dynamodb.request("DeleteItem", Key={"p": piece["p"], "k": piece["k"]})
    with pytest.raises(StateLostError):
        await store.open(KEY)


async def test_a_newer_format_is_refused(dynamodb: DynamoDB, store: Store) -> None:
    await store.commit(KEY, change())
    record = {"p": dynamodb.records()[0]["p"], "k": {"B": RECORD}}
    dynamodb.request(
        "UpdateItem", Key=record, UpdateExpression="SET f = :f", ExpressionAttributeValues={":f": {"N": "2"}}
    )
    other = dynamodb.store()
    with pytest.raises(FormatTooNewError):
        await other.open(KEY)
    with pytest.raises(FormatTooNewError):
        await other.commit(KEY, change())
    await other.aclose()


# --------------------------------------------------------------------------------------------------- loops and forks


def test_throw_away_loops_leave_no_sockets_and_no_warnings(dynamodb: DynamoDB) -> None:
    store = dynamodb.store()

    def sockets() -> int:
        return sum("socket:" in _target(entry.path) for entry in os.scandir("/proc/self/fd"))

    asyncio.run(read_log(store, KEY))
    gc.collect()
    before = sockets()
    for _ in range(3):
        asyncio.run(read_log(store, KEY))
    gc.collect()
    assert sockets() <= before
    del store
    gc.collect()
    assert sockets() < before


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


async def test_two_loops_in_two_threads_share_a_store(store: Store) -> None:
    def elsewhere() -> None:
        async def turns() -> None:
            for number in range(10):
                await store.commit(KEY, change(logs=append(b"t%d" % number)))
            await store.detach()

        asyncio.run(turns())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    for number in range(10):
        await store.commit(KEY, change(logs=append(b"m%d" % number)))
    await asyncio.to_thread(thread.join)
    assert len(await read_log(store, KEY)) == 20


def test_a_forked_child_uses_connections_of_its_own(dynamodb: DynamoDB) -> None:
    store = dynamodb.store()

    async def one(item: bytes) -> None:
        await store.commit(KEY, change(logs=append(item)))

    with asyncio.Runner() as runner:
        runner.run(one(b"parent"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                asyncio.run(one(b"child"))
                code = 0
            os._exit(code)
        for _ in range(10):
            runner.run(one(b"parent"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        items = runner.run(read_log(store, KEY))
        runner.run(store.aclose())
    assert sorted(items) == [b"child"] + [b"parent"] * 11


async def test_the_loop_is_not_blocked_while_a_client_is_made_and_used(dynamodb: DynamoDB) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begun)

    watching = asyncio.create_task(watch())
    store = dynamodb.store()
    data = random.Random(2).randbytes(4_000_000)
    await store.commit(KEY, change(values={Part("a", "b"): data}))
    assert await read_values(store, KEY) == {Part("a", "b"): data}
    await store.aclose()
    watching.cancel()
    assert longest < 0.15


async def test_errors_are_session_errors_only(dynamodb: DynamoDB) -> None:
    """Whatever the proxy does, no error of botocore or aiohttp comes out."""

    def decide(operation: str, arguments: dict[str, Any]) -> Decision:
        decisions: list[Decision] = ["pass", "pass", "lose the request", "lose the reply", throttled(), Answer(500, {})]
        return random.choice(decisions)

    async with behind(dynamodb, decide, patience_s=0.5) as store:
        for number in range(6):
            with contextlib.suppress(SessionError):
                await store.commit(KEY, change(logs=append(b"%d" % number)))
            with contextlib.suppress(SessionError):
                await store.find("acme", "session")
