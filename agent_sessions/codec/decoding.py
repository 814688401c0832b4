"""Bytes to values. Plain data is one C call; each extension in it calls back into Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.msgpack import Decoder

from agent_sessions.codec import registry
from agent_sessions.codec.encoding import MAX_DEPTH, list_header
from agent_sessions.codec.leaves import LAST_RESERVED_CODE, READERS, Code
from agent_sessions.codec.unreadable import unreadable
from agent_sessions.errors import FormatTooNewError, SerializationError, SessionError


def decode(data: bytes | memoryview) -> Any:
    """The value that `encode` made these bytes from. Runs no code that the data names.

    Raises:
        SerializationError: The data is damaged, or holds an object of a class that is not registered here, or is
            registered in an older version.
        DecryptionError: It is encrypted, or could not be decrypted.
        FormatTooNewError: A newer version of this library has written it.
    """
    try:
        return _decode(data)
    except SessionError:
        raise
    except RecursionError:
        raise SerializationError("the stored data is nested too deep to be read here.") from None
    except msgspec.DecodeError as error:
        raise unreadable(data) or SerializationError(f"the stored data is damaged: {error}.") from None
    except Exception as error:  # the text of these may hold a value
        raise SerializationError(
            f"the stored data is damaged, or can't be read on this host: {type(error).__name__}."
        ) from None


def decode_list(encoded: bytes | memoryview, count: int) -> list[Any]:
    """The values that `encode` made so many pieces from, which follow on one another here; in one C call.

    Raises:
        SerializationError, FormatTooNewError: As `decode`, of the first that can't be read.
    """
    values: list[Any] = decode(b"".join((list_header(count), encoded)))
    return values


Hook = Callable[[int, memoryview], object]
Payload = Decoder[Any]


def _read_tuple(data: memoryview, payload: Payload) -> object:
    return tuple(_array(data, payload))


def _read_set(data: memoryview, payload: Payload) -> object:
    return set(_array(data, payload))


def _read_frozenset(data: memoryview, payload: Payload) -> object:
    return frozenset(_array(data, payload))


def _read_dict(data: memoryview, payload: Payload) -> object:
    pairs = iter(_array(data, payload))
    return dict(zip(pairs, pairs, strict=True))


def _read_object(data: memoryview, payload: Payload) -> object:
    match payload.decode(data):
        case [str() as name, int() as version, dict() as fields]:
            names_set = None
        case [str() as name, int() as version, dict() as fields, list() as names_set]:
            pass
        case _:
            raise ValueError("not the layout of an object")
    known = registry.by_name.get(name)
    if known is None:
        raise SerializationError(
            f"the stored data holds a {name!r}, which is not registered here. Import the module that registers it, "
            f"or register the class under that name: agent_sessions.register_type(..., name={name!r})."
        )
    try:
        return known.build(version, fields, names_set)
    except SessionError:
        raise
    except Exception as error:
        raise SerializationError(
            f"the stored {name} does not fit its class: {type(error).__name__}. "
            "Raise its version and give an upgrade (register_type)."
        ) from None


def _array(data: memoryview, payload: Payload) -> list[object]:
    items = payload.decode(data)
    if type(items) is not list:
        raise ValueError("not an array")
    return items


_COMPOUND: Final[dict[int, Callable[[memoryview, Payload], object]]] = {
    Code.TUPLE: _read_tuple,
    Code.SET: _read_set,
    Code.FROZENSET: _read_frozenset,
    Code.DICT: _read_dict,
    Code.OBJECT: _read_object,
}


def _hook(payload: Payload | None) -> Hook:
    """What reads an extension whose payload is read by `payload`; None where no deeper nesting is allowed."""

    def read(code: int, data: memoryview) -> object:
        leaf = READERS.get(code)
        if leaf is not None:
            return leaf(data)
        compound = _COMPOUND.get(code)
        if compound is None:
            raise _unknown(code)
        if payload is None:
            raise SerializationError(f"the stored data is damaged: nested more than {MAX_DEPTH} deep.")
        return compound(data, payload)

    return read


def _unknown(code: int) -> SessionError:
    if 0 < code <= LAST_RESERVED_CODE:
        return FormatTooNewError(
            f"the stored data holds an extension of code {code}, which a newer version of agent-sessions has written. "
            "Upgrade agent-sessions."
        )
    return SerializationError(f"the stored data is damaged: it holds an unknown extension of code {code}.")


def _nested_decoders() -> Payload:
    """A decoder whose extensions nest at most `MAX_DEPTH` deep: one decoder per level, so no counter is needed."""
    decoder: Payload | None = None
    for _ in range(MAX_DEPTH + 1):
        decoder = Decoder(ext_hook=_hook(decoder))
    assert decoder is not None
    return decoder


_decode: Final = _nested_decoders().decode
