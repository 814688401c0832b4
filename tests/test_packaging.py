from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("agent_sessions", "adapters/agent_sessions_langgraph", "adapters/agent_sessions_openai")
# What `import agent_sessions` must leave alone: frameworks, drivers, and what only the command line needs.
HEAVY = ("agents", "langchain_core", "langgraph", "openai", "redis", "rich", "typer", "yaml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_file_of_every_package(wheel: zipfile.ZipFile) -> None:
    sources = {
        file.relative_to((ROOT / package).parent).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }

    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert packed == sources
    assert any(name.endswith(".lua") for name in packed)
    assert {name for name in packed if name.endswith("py.typed")} == {
        f"{Path(package).name}/py.typed" for package in PACKAGES
    }


def test_importing_the_library_imports_no_framework_driver_or_terminal() -> None:
    code = f"import sys, agent_sessions; print([name for name in {HEAVY!r} if name in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"
