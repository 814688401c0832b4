"""The classes that may be stored, each under a name of its own and with a version."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar, overload

import msgspec

from agent_sessions.codec.shapes import Fields, Shape, shape_of
from agent_sessions.errors import InvalidError, SerializationError

Class = TypeVar("Class", bound=type)
Upgrade = Callable[[Fields, int], Fields]

_MAX_NAME_BYTES: Final = 256


class Registration(msgspec.Struct, frozen=True):
    """What is known about a registered class."""

    cls: type
    name: str
    version: int
    upgrade: Upgrade | None
    shape: Shape

    def build(self, version: int, fields: Fields, names_set: list[str] | None) -> object:
        """An object from stored fields, upgraded first if they are of an older version.

        Raises:
            SerializationError: The fields are of a newer version, no upgrade was registered, it failed, or the fields
                are not those of the class.
        """
        if version == self.version:
            return self.shape.build(fields, names_set)
        if version > self.version:
            raise SerializationError(
                f"{self.name} was stored in version {version}, and version {self.version} is registered here. "
                "Run the newer code that wrote it."
            )
        if self.upgrade is None:
            raise SerializationError(
                f"{self.name} was stored in version {version}, and version {self.version} is registered without an "
                "upgrade. Give one: register_type(..., upgrade=lambda fields, from_version: {...})."
            )
        try:
            upgraded = self.upgrade(fields, version)
        except Exception as error:
            raise SerializationError(
                f"the upgrade of {self.name} from version {version} to {self.version} raised {type(error).__name__}."
            ) from error
        if type(upgraded) is not dict or not all(type(name) is str for name in upgraded):
            raise SerializationError(f"the upgrade of {self.name} must return a dict of its fields by name.")
        return self.shape.build_upgraded(upgraded)


by_class: Final[dict[type, Registration]] = {}
by_name: Final[dict[str, Registration]] = {}
_lock: Final = Lock()


@overload
def register_type(
    cls: Class, *, name: str | None = None, version: int = 1, upgrade: Upgrade | None = None
) -> Class: ...
@overload
def register_type(
    *, name: str | None = None, version: int = 1, upgrade: Upgrade | None = None
) -> Callable[[Class], Class]: ...
def register_type(cls: Any = None, *, name: str | None = None, version: int = 1, upgrade: Upgrade | None = None) -> Any:
    """Make a class storable: a dataclass, an Enum, a pydantic model or a msgspec Struct. Also a decorator.

        register_type(Cart, version=2, upgrade=lambda fields, from_version: {**fields, "currency": "EUR"})

        @register_type                      # or @register_type(version=2, upgrade=...)
        @dataclass
        class Cart: ...

    An object is stored as its fields, each a value of its own, and comes back as it was: neither `__init__` nor
    `__post_init__` nor a validator runs (a Struct's `__post_init__` does, and what it sets is overwritten). So a
    validator that takes other input than what the field then holds can't get in the way. Pydantic's extra and private
    attributes are stored too, and which fields were set. Enum members are stored by name, flags by several.

    A field that is new since the object was stored gets its default. One without, or a stored field that the class
    no longer has, is an error: raise `version` and give an `upgrade`. What it returns is validated by pydantic models.

    Args:
        cls: The class. Left out, a decorator is returned.
        name: What the class is called in stored data; by default `module.QualifiedName` (in a script run as `__main__`,
            the name by which others would import it). Keep the old name here when you move or rename a class.
        version: The version of the class's fields, 1 or more. Raise it when the fields change their meaning.
        upgrade: Called as `upgrade(fields, from_version)` with the fields stored by any older version; returns those
            of this one. For an Enum they are `{"name": ...}`, for a Flag `{"names": [...]}`.

    Registering the same class again replaces the earlier registration; so does a class of the same module and qualified
    name (a reloaded module, a notebook cell run again).

    Raises:
        InvalidError: `INVALID_TYPE` (a class of another kind, or known by another name), `INVALID_NAME` (not usable, or
            taken by another class), `INVALID_VERSION`, `INVALID_UPGRADE`.
    """
    if cls is None:
        return lambda later: register_type(later, name=name, version=version, upgrade=upgrade)
    shape = shape_of(cls)
    if name is None:
        name = _default_name(cls)
    _check(name, version, upgrade)
    registration = Registration(cls, name, version, upgrade, shape)
    with _lock:
        _admit(registration)
        by_name[name] = registration
        by_class[cls] = registration
    return cls


def _check(name: object, version: object, upgrade: object) -> None:
    if type(name) is not str or not name.strip() or not 0 < len(name.encode(errors="replace")) <= _MAX_NAME_BYTES:
        raise InvalidError("NAME", f"a type's name is a str of 1 to {_MAX_NAME_BYTES} bytes, not blank.", field="name")
    if not name.isprintable():
        raise InvalidError("NAME", "a type's name has printable characters only.", field="name")
    if type(version) is not int or not 1 <= version < 2**31:
        raise InvalidError("VERSION", "a type's version is an int, 1 or more.", field="version")
    if upgrade is not None and not callable(upgrade):
        raise InvalidError("UPGRADE", "upgrade is a function (fields, from_version) -> fields.", field="upgrade")


def _admit(new: Registration) -> None:
    known = by_class.get(new.cls)
    if known is not None and known.name != new.name:
        raise InvalidError(
            "TYPE", f"{_origin(new.cls)} is registered as {known.name!r} already, not {new.name!r}.", field="cls"
        )
    taken = by_name.get(new.name)
    if taken is None or taken.cls is new.cls:
        return
    if _origin(taken.cls) != _origin(new.cls):
        raise InvalidError(
            "NAME",
            f"the name {new.name!r} is taken by {_origin(taken.cls)}. "
            f"Give {_origin(new.cls)} another: register_type(..., name=...).",
            field="name",
        )
    del by_class[taken.cls]


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _default_name(cls: type) -> str:
    module = cls.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        if spec is not None:
            module = spec.name
        elif file is not None:
            module = Path(file).stem
    return f"{module}.{cls.__qualname__}"
