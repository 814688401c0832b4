"""Every example runs by itself, and prints what its docstring says."""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(example: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AK_", "OPENAI_"))}
    command = [sys.executable, "-W", "error", str(example)]
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def check_printed(example: Path, printed: str) -> None:
    docstring = ast.get_docstring(ast.parse(example.read_text())) or ""
    expected = textwrap.dedent(docstring.partition("Prints:\n")[2]) + "\n"
    if not doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS):
        pytest.fail(f"{example.name} says\n{expected}\nand printed\n{printed}", pytrace=False)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_prints_what_it_says(example: Path) -> None:
    check_printed(example, run(example))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_does_the_same_on_redis(example: Path, redis_url: str) -> None:
    check_printed(example, run(example, AK_SESSION__TYPE="redis", AK_SESSION__REDIS__URL=redis_url))


def test_a_deployment_on_redis_goes_on_where_the_last_process_ended(redis_url: str) -> None:
    (example,) = [example for example in EXAMPLES if example.stem == "configured_by_environment"]

    def visits() -> list[str]:
        printed = run(example, AK_SESSION__TYPE="redis", AK_SESSION__REDIS__URL=redis_url)
        return re.findall(r"Visit (\d+)", printed)

    assert [visits(), visits()] == [["1", "2"], ["3", "4"]]
