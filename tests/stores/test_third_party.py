"""A store that somebody else wrote, the example of the guide: it passes the suite, and is chosen by a variable."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "store_of_your_own"

PROGRAM = """
from agent_sessions import SyncSessionManager

with SyncSessionManager.from_env().open("s") as session:
    session.set("turns", session.get("turns", 0) + 1)
    print(type(session).__name__, session.get("turns"))
"""


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_module("file_store")
if TYPE_CHECKING:
    TestFileStore: Any
else:
    TestFileStore = _module("test_file_store").TestFileStore


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of packages in which the example is installed, as pip would leave it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    packages = tmp_path / "site-packages"
    information = packages / "acme_sessions-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    groups = project["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in named.items()) for group, named in groups
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))
    (packages / "file_store.py").write_bytes((EXAMPLE / "file_store.py").read_bytes())
    return packages


@pytest.mark.parametrize("name", ["acme_files", "file_store:FileStore", "file_store.FileStore"])
def test_a_variable_chooses_it(installed: Path, tmp_path: Path, name: str) -> None:
    for turn in (1, 2):
        done = _run(installed, tmp_path, name)
        assert done.stdout == f"SyncSession {turn}\n", done.stderr
    assert len([*(tmp_path / "kept").glob("*.key")]) == 2  # the session, and the list of tenants


def test_an_unknown_one_lists_it_among_the_choices(installed: Path, tmp_path: Path) -> None:
    done = _run(installed, tmp_path, "acme_fils")
    assert done.returncode == 1
    assert "acme_files, dynamodb, in_memory, redis, sqlite, valkey" in done.stderr
    assert "INVALID_SETTING" in done.stderr or "AK_SESSION__TYPE" in done.stderr


def _run(installed: Path, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    variables = {"AK_SESSION__TYPE": name, "ACME_SESSIONS_FOLDER": str(folder / "kept"), "PYTHONPATH": str(installed)}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=60)
