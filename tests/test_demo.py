"""The `agent-sessions` command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

MAX_LINES = 40


def command(*arguments: str, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it in a process of its own, piped; `before` is executed in that process first."""
    code = (
        f"import sys; {before or 'pass'}\nfrom agent_sessions.cli import main\nsys.argv[1:] = {list(arguments)}; main()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AK_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def in_memory() -> subprocess.CompletedProcess[str]:
    return command("demo")


def test_the_demo_runs_in_memory_without_key_or_network(in_memory: subprocess.CompletedProcess[str]) -> None:
    assert (in_memory.returncode, in_memory.stderr) == (0, "")
    assert len(in_memory.stdout.splitlines()) < MAX_LINES
    assert "\x1b" not in in_memory.stdout


def test_the_second_turn_is_shown_what_the_first_one_said(in_memory: subprocess.CompletedProcess[str]) -> None:
    shown = re.findall(r"shown (\d+) (\w+), first '([^']*)'", in_memory.stdout)

    assert [what for _, what, _ in shown] == ["item", "message", "items", "messages"]
    assert shown[2] == ("5", "items", "Two evening tickets, please.")
    assert shown[3] == ("5", "messages", shown[1][2])
    assert "{'evening ticket': 2, 'programme': 1}" in in_memory.stdout


def test_each_skill_call_names_the_session(in_memory: subprocess.CompletedProcess[str]) -> None:
    (session_id,) = set(re.findall(r"demo-[0-9a-f]{6}", in_memory.stdout))

    skills = [line for line in in_memory.stdout.splitlines() if line.startswith("    skill")]
    assert len(skills) == 4
    assert all(session_id in line for line in skills)


def test_every_activation_is_complete_and_names_its_skills(in_memory: subprocess.CompletedProcess[str]) -> None:
    runs = re.findall(r"(\w+) +(\w+) +(\w+) +\d+ ms  demo-\w+(?:  skill (\w+))?$", in_memory.stdout, re.MULTILINE)

    one_turn = [
        ("Shop", "callable", "COMPLETE", ""),
        ("triage", "openai", "COMPLETE", "fill_cart"),
        ("checkout", "langgraph", "COMPLETE", "read_cart"),
    ]
    assert runs == one_turn * 2


def test_on_redis_the_two_turns_are_two_processes(redis_url: str) -> None:
    done = command("demo", AK_SESSION__TYPE="redis", AK_SESSION__REDIS__URL=redis_url)

    assert (done.returncode, done.stderr) == (0, "")
    first, second = re.findall(r"Turn \d  process (\d+)", done.stdout)
    assert first != second
    assert "shown 5 items" in done.stdout


def test_a_store_that_is_away_is_named_without_its_password() -> None:
    done = command("demo", AK_SESSION__TYPE="redis", AK_SESSION__REDIS__URL="redis://me:s3cret@127.0.0.1:1/0")

    assert done.returncode == 1
    assert "(127.0.0.1:1)" in done.stderr
    assert "What to do" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_a_missing_framework_is_named_with_the_command_that_installs_it() -> None:
    done = command("demo", before="sys.modules['langgraph'] = None")

    assert done.returncode == 1
    assert "langgraph" in done.stderr
    assert "pip install 'agent-sessions-runtime[openai,langgraph" in done.stderr


def test_a_wrong_setting_is_named() -> None:
    done = command("demo", AK_SESSION__TPYE="redis")

    assert done.returncode == 1
    assert "AK_SESSION__TYPE" in done.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    assert command("--version").stdout == f"agent-sessions {version('agent-sessions-runtime')}\n"
