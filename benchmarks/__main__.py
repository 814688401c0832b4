"""Run all comparisons, or the named blocks of them: python -m benchmarks [BLOCK ...]; see `BLOCKS`."""

from __future__ import annotations

import asyncio
import platform
import sys

from .servers import redis_server

BLOCKS = ("conversation", "cluster", "langgraph", "sqlite", "dynamodb", "lifecycle", "overhead")


async def main(blocks: list[str]) -> None:
    print(f"Python {platform.python_version()}; times differ from machine to machine: compare within a block")
    with redis_server() as url:
        if "conversation" in blocks:
            from . import conversation

            await conversation.run(url)
        if "cluster" in blocks:
            from . import cluster_turns

            await cluster_turns.run(url)
        if "langgraph" in blocks:
            from . import langgraph_turns

            await langgraph_turns.run(url)
    if "sqlite" in blocks:
        from . import sqlite_turns

        await sqlite_turns.run()
    if "dynamodb" in blocks:
        from . import dynamodb_turns

        await dynamodb_turns.run()
    if "lifecycle" in blocks:
        from . import lifecycle

        for kind in ("redis", "sqlite"):
            print(f"\nThe life of sessions, {kind}")
            await lifecycle.run(kind, lifecycle.MANY)
    if "overhead" in blocks:
        from . import overhead

        await overhead.of_the_runner()
        overhead.of_the_import()


chosen = sys.argv[1:] or list(BLOCKS)
if unknown := [block for block in chosen if block not in BLOCKS]:
    sys.exit(f"no such block: {', '.join(unknown)}; there are {', '.join(BLOCKS)}")
asyncio.run(main(chosen))
