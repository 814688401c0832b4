"""The settings by the names of their environment variables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PREFIX = "AK_SESSION__"


@dataclass(frozen=True)
class Variable:
    """One setting, as the reference shows it."""

    name: str
    """The environment variable: `AK_SESSION__REDIS__URL`."""
    path: tuple[str, ...]
    """Where it is in `Settings` and under the `session` section of the YAML file: `("redis", "url")`."""
    default: object
    description: str
    """What it does, with unit and range."""
    secret: bool
    """Whether its value may hold a password, so that nothing shows it."""


def variables_of(model: type[BaseModel]) -> dict[str, Variable]:
    """Every setting of a model and its sections, by the name of its variable."""
    return {variable.name: variable for variable in _variables(model, ())}


def variable_name(path: tuple[str, ...]) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The remedy for a misspelt name. The prefix, which all have, must not make them alike."""
    bare = {known.removeprefix(prefix).lower(): known for known in names}
    found = difflib.get_close_matches(name.lower().removeprefix(prefix.lower()), bare, n=1, cutoff=0.5)
    return f"; did you mean {bare[found[0]]}?" if found else ""


def _variables(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Variable]:
    for name, field in model.model_fields.items():
        here = (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, here)
        else:
            yield Variable(
                name=variable_name(here),
                path=here,
                default=field.default,
                description=" ".join((field.description or "").split()),
                secret=_is_secret(field),
            )


def _is_secret(field: FieldInfo) -> bool:
    marked = isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("secret"))
    return marked or "SecretStr" in str(field.annotation)
