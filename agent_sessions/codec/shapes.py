"""How an object of a registered class becomes fields, and fields an object: one shape per kind of class."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from enum import Enum, Flag
from functools import cached_property
from typing import Any, Final

import msgspec
from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import PydanticUndefined

from agent_sessions.errors import InvalidError, SerializationError

Fields = dict[str, Any]


class UnstorableError(Exception):
    """An object holds what its fields don't tell. The text says what, without the object's name."""


class Shape(ABC):
    """What the codec does with a class of one kind."""

    frozen: bool = False
    """Whether an object can't be changed in place as long as its fields can't."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls

    @abstractmethod
    def take(self, value: Any) -> Fields:
        """The fields of an object.

        Raises:
            UnstorableError: There is more to the object than its fields, or less.
        """

    def names_set(self, value: Any) -> list[str] | None:
        """Which fields were set explicitly, where the class keeps count and not all were."""
        return None

    @abstractmethod
    def build(self, fields: Fields, names_set: list[str] | None) -> object:
        """The inverse of `take` and `names_set`."""

    def build_upgraded(self, fields: Fields) -> object:
        """An object from fields that come from an upgrade."""
        return self.build(fields, None)

    def refuse_unknown(self, fields: Fields, known: Iterable[str]) -> None:
        unknown = fields.keys() - known
        if unknown:
            raise SerializationError(
                f"the stored {self.cls.__qualname__} has fields that the class lacks: {', '.join(sorted(unknown))}. "
                "Raise its version and give an upgrade (register_type), or run the code that wrote it."
            )

    def refuse_missing(self, name: str) -> None:
        raise SerializationError(
            f"the stored {self.cls.__qualname__} lacks the field {name}, which has no default. "
            "Give it one, or raise the version and give an upgrade (register_type)."
        )

    def refuse_undeclared(self, value: object, declared: Iterable[str]) -> None:
        undeclared = getattr(value, "__dict__", {}).keys() - declared
        undeclared = {name for name in undeclared if not isinstance(getattr(self.cls, name, None), cached_property)}
        if undeclared:
            raise UnstorableError(f"has attributes that are no fields: {', '.join(sorted(undeclared))}. Declare them")


class EnumShape(Shape):
    """Members by name."""

    frozen = True

    def take(self, value: Any) -> Fields:
        if self.cls.__members__.get(value.name) is not value:
            raise UnstorableError("is no named member of its Enum")
        return {"name": value.name}

    def build(self, fields: Fields, names_set: list[str] | None) -> object:
        (name,) = fields.values()
        return self.member(name)

    def member(self, name: str) -> Any:
        try:
            return self.cls.__members__[name]
        except KeyError:
            raise SerializationError(
                f"{self.cls.__qualname__} has no member of the stored name. Keep the old name as an alias, "
                "or raise the version and give an upgrade (register_type)."
            ) from None


class FlagShape(EnumShape):
    """Combinations by the names of their members."""

    def take(self, value: Any) -> Fields:
        members = list(value)
        if self._combine(members).value != value.value:
            raise UnstorableError("has bits that are no named member of its Flag")
        return {"names": [member.name for member in members]}

    def build(self, fields: Fields, names_set: list[str] | None) -> object:
        (names,) = fields.values()
        return self._combine(self.member(name) for name in names)

    def _combine(self, members: Iterable[Any]) -> Any:
        combined = self.cls(0)
        for member in members:
            combined |= member
        return combined


class DataclassShape(Shape):
    """Fields as they are, those with `init=False` too; neither `__init__` nor `__post_init__` runs."""

    def __init__(self, cls: Any) -> None:
        super().__init__(cls)
        self.frozen = cls.__dataclass_params__.frozen
        self._fields = {field.name: field for field in dataclasses.fields(cls)}
        try:
            object.__new__(cls)
        except TypeError:
            raise _wrong_kind(cls, "it is abstract, or made of a built-in type whose content is no field") from None

    def take(self, value: Any) -> Fields:
        self.refuse_undeclared(value, self._fields)
        fields = {}
        for name, field in self._fields.items():
            try:
                fields[name] = getattr(value, name)
            except AttributeError:
                if field.init or _default_of(field) is not None:
                    raise UnstorableError(f"has no value in its field {name}. Set it") from None
        return fields

    def build(self, fields: Fields, names_set: list[str] | None) -> object:
        self.refuse_unknown(fields, self._fields)
        built = object.__new__(self.cls)
        for name, field in self._fields.items():
            if name in fields:
                object.__setattr__(built, name, fields[name])
            elif (default := _default_of(field)) is not None:
                object.__setattr__(built, name, default())
            elif field.init:
                self.refuse_missing(name)
        return built


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], object] | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    if field.default is not dataclasses.MISSING:
        return lambda: field.default
    return None


class StructShape(Shape):
    """Fields as they are. `__post_init__` can't be kept from running; what it changes is undone."""

    def __init__(self, cls: Any) -> None:
        super().__init__(cls)
        self.frozen = cls.__struct_config__.frozen
        self._required = {field.name: field.required for field in msgspec.structs.fields(cls)}
        self._unset = {field.name for field in msgspec.structs.fields(cls) if field.default is msgspec.UNSET}

    def take(self, value: Any) -> Fields:
        self.refuse_undeclared(value, self._required)
        try:
            fields = {name: getattr(value, name) for name in self._required}
        except AttributeError:
            raise UnstorableError("has a field without a value. Set it") from None
        return {name: item for name, item in fields.items() if not (item is msgspec.UNSET and name in self._unset)}

    def build(self, fields: Fields, names_set: list[str] | None) -> object:
        self.refuse_unknown(fields, self._required)
        for name, required in self._required.items():
            if required and name not in fields:
                self.refuse_missing(name)
        built = self.cls(**fields)
        for name, item in fields.items():
            if getattr(built, name) is not item:
                msgspec.structs.force_setattr(built, name, item)
        return built


class PydanticShape(Shape):
    """Fields, extra and private attributes as they are; validators run only on what an upgrade returns."""

    def take(self, value: Any) -> Fields:
        declared = self.cls.model_fields
        self.refuse_undeclared(value, declared)
        unset = declared.keys() - value.__dict__.keys()
        if unset:
            raise UnstorableError(f"has no value in its fields {', '.join(sorted(unset))}. Set them")
        fields = {name: value.__dict__[name] for name in declared}
        extra, private = value.__pydantic_extra__ or {}, value.__pydantic_private__ or {}
        if extra.keys() & self.cls.__private_attributes__.keys() or extra.keys() & fields.keys():
            raise UnstorableError("has an extra attribute of the name of a declared one. Rename it")
        return fields | extra | private

    def names_set(self, value: BaseModel) -> list[str] | None:
        names = value.model_fields_set
        known = self.cls.model_fields.keys() | (value.__pydantic_extra__ or {}).keys()
        return None if names == known else sorted(names)

    def build(self, fields: Fields, names_set: list[str] | None) -> object:
        declared = self.cls.model_fields
        private, rest = self._part(fields)
        extra = {name: rest[name] for name in rest if name not in declared}
        allowed = self.cls.model_config.get("extra") == "allow"
        if not allowed:
            self.refuse_unknown(extra, ())
        values: Fields = {}
        for name, field in declared.items():
            if name in rest:
                values[name] = rest[name]
            elif field.is_required():
                self.refuse_missing(name)
            else:
                values[name] = field.get_default(call_default_factory=True, validated_data=values)
        built = self.cls.__new__(self.cls)
        BaseModel.__setstate__(
            built,
            {
                "__dict__": values,
                "__pydantic_extra__": extra if allowed else None,
                "__pydantic_fields_set__": set(rest if names_set is None else names_set),
                "__pydantic_private__": self._privates(private),
            },
        )
        return built

    def build_upgraded(self, fields: Fields) -> object:
        private, rest = self._part(fields)
        if self.cls.model_config.get("extra") != "allow":
            self.refuse_unknown(rest, self.cls.model_fields)
        given = rest.get("root", PydanticUndefined) if issubclass(self.cls, RootModel) else rest
        try:
            built = self.cls.model_validate(given, by_alias=False, by_name=True)
        except ValidationError as error:  # its own text holds the values
            found = [f"{'.'.join(map(str, e['loc']))}: {e['type']}" for e in error.errors(include_input=False)]
            raise SerializationError(
                f"what the upgrade of {self.cls.__qualname__} returned is not valid ({'; '.join(found)})."
            ) from None
        for name, item in private.items():
            setattr(built, name, item)
        return built

    def _part(self, fields: Fields) -> tuple[Fields, Fields]:
        names = self.cls.__private_attributes__
        return (
            {name: item for name, item in fields.items() if name in names},
            {name: item for name, item in fields.items() if name not in names},
        )

    def _privates(self, stored: Fields) -> Fields | None:
        if not self.cls.__private_attributes__:
            return None
        defaults = {
            name: attribute.get_default()
            for name, attribute in self.cls.__private_attributes__.items()
            if name not in stored
        }
        return stored | {name: item for name, item in defaults.items() if item is not PydanticUndefined}


_KINDS: Final[tuple[tuple[type, type[Shape]], ...]] = (
    (Flag, FlagShape),
    (Enum, EnumShape),
    (BaseModel, PydanticShape),
    (msgspec.Struct, StructShape),
)


def shape_of(cls: Any) -> Shape:
    """The shape of a class.

    Raises:
        InvalidError: `INVALID_TYPE`: it is of none of the known kinds.
    """
    if not isinstance(cls, type):
        raise InvalidError("TYPE", f"register_type takes a class, not a {type(cls).__qualname__}.", field="cls")
    for base, shape in _KINDS:
        if issubclass(cls, base):
            return shape(cls)
    if "__dataclass_fields__" in cls.__dict__:
        return DataclassShape(cls)
    raise _wrong_kind(cls, "it is none of these")


def is_registrable(cls: type) -> bool:
    """Whether `register_type` would be the remedy for a value of this class."""
    return "__dataclass_fields__" in cls.__dict__ or issubclass(cls, tuple(base for base, _ in _KINDS))


def _wrong_kind(cls: type, why: str) -> InvalidError:
    return InvalidError(
        "TYPE",
        f"{cls.__qualname__} can't be registered: {why}. "
        "Storable are dataclasses, Enums, pydantic models and msgspec Structs.",
        field="cls",
    )
