"""Reading the settings from outside: environment variables over the `session` section of a YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from ..errors import InvalidError
from .variables import PREFIX, Variable, nearest, variable_name, variables_of

S = TypeVar("S", bound=BaseSettings)
Variables: TypeAlias = Mapping[str, Variable]

CONFIG_PATH_VARIABLE = "AK_CONFIG_PATH_OVERRIDE"

_HAS_SESSION_SECTION = re.compile(r"""^["']?session["']?\s*:""", re.MULTILINE)


def load(model: type[S]) -> S:
    """See `Settings.load`."""
    return cast(S, _loaded(model, _fingerprint()))


def load_file(model: type[S], file: Path) -> S:
    """See `Settings.load_file`."""
    known = variables_of(model)
    section = _session_section(_text(file, "file"), file)
    try:
        return model(**_checked(section, (), {variable.path for variable in known.values()}, file))
    except ValidationError as error:
        raise _wrong_value(error, {}, file, known) from None


def _fingerprint() -> tuple[object, ...]:
    """All that `load` depends on."""
    file = _config_file()
    try:
        state = file.stat()
        stamp = (state.st_mtime_ns, state.st_size)
    except OSError:
        stamp = None
    own = tuple((name, value) for name, value in os.environ.items() if name[:3].upper() == "AK_")
    return file.absolute(), stamp, own


@lru_cache(maxsize=8)
def _loaded(model: type[BaseSettings], _: tuple[object, ...]) -> BaseSettings:
    known = variables_of(model)
    _check_variables(os.environ, known)
    file, section = _read_config_file(known)
    environment = EnvSettingsSource(model)()
    try:
        return model(**_merged(section, environment))
    except ValidationError as error:
        raise _wrong_value(error, environment, file, known) from None


def _check_variables(names: Iterable[str], known: Variables) -> None:
    single_underscores = {re.sub("_+", "_", name): name for name in known}
    seen: dict[str, str] = {}
    for name in sorted(names):
        upper = name.upper()
        if upper in known:
            if upper in seen:
                raise InvalidError("SETTING", f"{seen[upper]} and {name} are the same; set one of them", field=name)
            seen[upper] = name
        elif upper.startswith(PREFIX):
            raise _unknown(name, name, PREFIX, known)
        elif meant := single_underscores.get(re.sub("_+", "_", upper)):
            raise InvalidError("SETTING", f"{name} is not a setting; did you mean {meant}?", field=name)


def _config_file() -> Path:
    return Path(os.environ.get(CONFIG_PATH_VARIABLE) or "config.yaml")


def _read_config_file(known: Variables) -> tuple[Path, dict[str, Any]]:
    """The file, and its `session` section without what is empty."""
    override = os.environ.get(CONFIG_PATH_VARIABLE)
    file = _config_file()
    if not override and not file.is_file():
        return file, {}
    text = _text(file, CONFIG_PATH_VARIABLE)
    # A config.yaml of another tool may be anything: several documents, tags of its own, a template.
    if not override and not _HAS_SESSION_SECTION.search(text):
        return file, {}
    section = _session_section(text, file)
    return file, _checked(section, (), {variable.path for variable in known.values()}, file)


def _text(file: Path, field: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidError("SETTING", f"{file} can't be read: {reason}", field=field) from None


def _session_section(text: str, file: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the error's own text quotes the file
        place = f", line {mark.line + 1}" if mark else ""
        raise InvalidError("SETTING", f"{file}{place}: this can't be read as YAML", field="session") from None
    section = document.get("session") if isinstance(document, Mapping) else None
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise InvalidError("SETTING", f"session in {file} must be a mapping of settings", field="session")
    return section


def _checked(
    section: Mapping[Any, Any], path: tuple[str, ...], keys: set[tuple[str, ...]], file: Path
) -> dict[str, Any]:
    """The section without what is empty. A key that does not exist is an error, empty or not."""
    checked: dict[str, Any] = {}
    for key, value in section.items():
        here = (*path, str(key))
        is_section = any(known[: len(here)] == here for known in keys - {here})
        if is_section and isinstance(value, Mapping):
            checked[str(key)] = _checked(value, here, keys, file)
        elif not is_section and here not in keys:
            raise _unknown(_key(here), f"{_key(here)} in {file}", "session.", [_key(known) for known in sorted(keys)])
        elif value is not None and value != "":
            checked[str(key)] = value
    return checked


def _key(path: tuple[str, ...]) -> str:
    return ".".join(("session", *path))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        if isinstance(lower, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(lower, value)
        else:
            merged[key] = value
    return merged


def _unknown(field: str, what: str, prefix: str, names: Iterable[str]) -> InvalidError:
    remedy = nearest(field, names, prefix) or f". There are: {', '.join(names)}"
    return InvalidError("SETTING", f"{what} is not a setting{remedy}", field=field)


def _wrong_value(error: ValidationError, environment: Mapping[str, Any], file: Path, known: Variables) -> InvalidError:
    """The first wrong value: where it was set, what was expected, and the value itself if it can't be a secret."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = tuple(part for part in first["loc"] if isinstance(part, str))  # without the place in a list
    variable = next((variable for variable in known.values() if variable.path == path), None)
    from_environment = _has(environment, path)
    name = variable_name(path) if from_environment else _key(path)
    given = str(first["input"])
    shown = "" if variable is None or variable.secret or "@" in given or "://" in given else f" ({given!r:.60})"
    message = first["msg"].removeprefix("Value error, ")
    explains_itself = first["type"] == "value_error"  # one of ours
    expected = f". Expected: {variable.description}" if variable and not explains_itself else ""
    where = "" if from_environment else f" in {file}"
    return InvalidError("SETTING", f"{name}{where} is wrong{shown}: {message}{expected}", field=name)


def _has(values: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
