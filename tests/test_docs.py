"""Every code block of the README and of the documentation is executed, and what it is said to print is compared.

| block | what happens |
|---|---|
| `python` | executed; the blocks of a page share one namespace and one event loop, `await` works at the top level |
| `python title="shop.py"` | written to that file, in the page's own folder |
| `console` | `python`, `pytest` and `agent-sessions` are run there; `make` targets must exist; the rest is not run |
| `text title="output"` | must be what the block before it printed; `...` stands for anything |
| `<!-- python ... -->` | executed likewise, and not shown to readers |

A page that names `redis://localhost:6379`, or sets `AK_SESSION__TYPE=redis`, gets a real server in its place; one that
makes a `DynamoDBStore`, DynamoDB Local in the place of AWS.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REDIS_URL = "redis://localhost:6379"

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<code>.*?)^(?P=indent)```$"
    r"|^<!-- python\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
_PROGRAMS = {"python": [], "pytest": ["-m", "pytest"], "agent-sessions": ["-m", "agent_sessions.cli"]}


class Block(NamedTuple):
    line: int
    language: str
    title: str | None
    code: str


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["hidden"] is not None:
            yield Block(line, "python", None, found["hidden"])
        else:
            yield Block(line, found["language"], found["title"], textwrap.dedent(found["code"]))


class Page:
    """Executes blocks one after the other, and keeps what they define."""

    def __init__(self, path: Path, folder: Path, redis_url: str | None) -> None:
        self._path = path
        self._folder = folder
        self._redis_url = redis_url
        self._namespace: dict[str, Any] = {"__name__": path.stem.replace("-", "_")}
        self._printed = ""

    def execute(self, block: Block, loop: asyncio.Runner) -> None:
        if self._redis_url is not None:
            block = block._replace(code=block.code.replace(REDIS_URL, self._redis_url))
        if block.language == "text" and block.title == "output":
            self._compare(block.line, block.code, self._printed)
        elif block.language == "console":
            self._run_commands(block)
        elif block.language == "python" and block.title is not None:
            (self._folder / block.title).write_text(block.code)
        elif block.language == "python":
            self._run_python(block, loop)

    def _run_python(self, block: Block, loop: asyncio.Runner) -> None:
        source = "\n" * block.line + block.code  # so that a traceback names the page's own line
        code = compile(source, str(self._path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if code.co_flags & inspect.CO_COROUTINE:
                loop.run(eval(code, self._namespace))
            else:
                exec(code, self._namespace)
        self._printed = printed.getvalue()

    def _run_commands(self, block: Block) -> None:
        for command in re.findall(r"^\$ .*(?:\n(?!\$ ).*)*", block.code, re.MULTILINE):
            line, _, expected = f"{command.rstrip()}\n".removeprefix("$ ").partition("\n")
            words = shlex.split(line, comments=True)
            variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            program, *arguments = [word for word in words if not re.match(r"[A-Z_]+=", word)]
            if program == "make":
                assert set(arguments) <= make_targets(), f"{self._path}:{block.line}: no such target: {line}"
            elif program in _PROGRAMS:
                self._compare(block.line, expected, self._output([*_PROGRAMS[program], *arguments], variables))

    def _output(self, arguments: list[str], variables: dict[str, str]) -> str:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}", **variables}
        if self._redis_url is not None:
            environment.setdefault("AK_SESSION__REDIS__URL", self._redis_url)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self._folder, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _compare(self, line: int, expected: str, got: str) -> None:
        if not doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS):
            pytest.fail(f"{self._path}:{line} says\n{expected}\nand this was printed:\n{got}", pytrace=False)


def make_targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_says_is_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    blocks = list(blocks_of(path))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("AK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    # Sessions configured by the environment are shared by what has the same settings: a page has its own.
    monkeypatch.setenv("AK_SESSION__REDIS__PREFIX", f"{path.stem}:")
    needs_redis = any(REDIS_URL in block.code or "TYPE=redis" in block.code for block in blocks)
    if any("DynamoDBStore(" in block.code for block in blocks):
        request.getfixturevalue("aws_credentials")
        url = f"http://127.0.0.1:{request.getfixturevalue('dynamodb_port')}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", url)
    page = Page(path, tmp_path, request.getfixturevalue("redis_url").removesuffix("/0") if needs_redis else None)
    with asyncio.Runner() as loop:
        for block in blocks:
            page.execute(block, loop)


def test_every_block_is_found() -> None:
    for path in PAGES:
        fences = re.findall(r"^ *```\w", path.read_text(), re.MULTILINE)
        found = list(blocks_of(path))
        assert len(found) >= len(fences), f"{path.relative_to(ROOT)} has a code block that the tests can't read"
