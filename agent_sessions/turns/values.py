"""The values of a session as one turn sees them: what was stored, and over it what the turn changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from .. import codec
from ..errors import SerializationError, TurnClosedError
from ..stores.base import Key, Part

_ABSENT: Any = object()


class Values:
    """Values by (namespace, name), thread-safe.

    A value is decoded at the first `get`, and the same object is handed out for the rest of the turn. What was
    handed out, or given to `set`, counts as it is at commit: `changes` encodes it again and compares.
    """

    def __init__(
        self,
        stored: Mapping[str, Mapping[str, bytes]],
        *,
        lock: threading.RLock | None = None,
        read_only: str | None = None,
    ) -> None:
        self._lock = lock or threading.RLock()
        self._stored = stored
        self._read_only = read_only
        self._written: dict[Part, bytes | None] = {}
        self._live: dict[Part, Any] = {}
        self._closed: str | None = None

    def get(self, part: Part, default: Any = None) -> Any:
        """The value, or the default."""
        with self._lock:
            self._check_open()
            value = self._load(part)
            return default if value is _ABSENT else value

    def set(self, part: Part, value: Any) -> None:
        """Set a value; what can't be stored raises `SerializationError` at once."""
        data = encode_value(part, value)
        with self._lock:
            self._check_writable()
            self._written[part] = data
            self._live[part] = value

    def delete(self, part: Part) -> None:
        """Delete a value; not an error if there is none."""
        with self._lock:
            self._check_writable()
            self._written[part] = None
            self._live.pop(part, None)

    def update(self, part: Part, change: Callable[[Any], Any], default: Any) -> Any:
        """Read, change, write, as one step for all threads; return the new value."""
        with self._lock:
            self._check_writable()
            value = self.get(part, _ABSENT)
            if value is _ABSENT:
                value = codec.decode(encode_value(part, default))  # a copy: the default must not collect changes
            before = None if codec.is_immutable(value) else encode_value(part, value)
            try:
                changed = change(value)
            except BaseException:
                if before is not None:
                    self._undo(part, before)
                raise
            self.set(part, changed)
            return changed

    def _undo(self, part: Part, before: bytes) -> None:
        """Forget what was changed in place."""
        self._live.pop(part, None)
        if before != self._data(part):
            self._written[part] = before

    def names(self, namespace: str) -> list[str]:
        """The names in a namespace, sorted."""
        with self._lock:
            self._check_open()
            names = set(self._stored.get(namespace, ()))
            for part, data in self._written.items():
                if part.namespace == namespace:
                    names.discard(part.name) if data is None else names.add(part.name)
            return sorted(names)

    def namespaces(self) -> AbstractSet[str]:
        """Every namespace that holds a value."""
        with self._lock:
            self._check_open()
            candidates = {*self._stored, *(part.namespace for part in self._written)}
            return {namespace for namespace in candidates if self.names(namespace)}

    def written(self) -> dict[Part, bytes | None]:
        """What was set, deleted or changed in place, also if it is the same as what is stored; None means deleted."""
        with self._lock:
            for part, value in self._live.items():
                if not codec.is_immutable(value):
                    data = encode_value(part, value)
                    if data != self._data(part):
                        self._written[part] = data
            return self._written.copy()

    def changes(self) -> dict[Part, bytes | None]:
        """What differs from what is stored, changes in place included; None means deleted."""
        with self._lock:
            return {part: data for part, data in self.written().items() if data != self._stored_data(part)}

    def take(self) -> dict[Part, bytes | None]:
        """Hand the changes over, to be stored: from here on they count as stored."""
        with self._lock:
            changes = self.changes()
            self._stored = with_changes(self._stored, changes)
            self._written.clear()
            return changes

    @property
    def stored(self) -> Mapping[str, Mapping[str, bytes]]:
        """What is stored, or was taken to be."""
        return self._stored

    def replay(self, written: Mapping[Part, bytes | None]) -> None:
        """Write what was written elsewhere, as if it had been written here."""
        with self._lock:
            for part, data in written.items():
                self._written[part] = data
                self._live.pop(part, None)

    def close(self, reason: str) -> None:
        """From now on every use raises `TurnClosedError` with this reason."""
        with self._lock:
            self._closed = reason

    def _check_open(self) -> None:
        if self._closed is not None:
            raise TurnClosedError(self._closed)

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only is not None:
            raise TurnClosedError(self._read_only)

    def _load(self, part: Part) -> Any:
        if part in self._live:
            return self._live[part]
        data = self._data(part)
        if data is None:
            return _ABSENT
        try:
            value = codec.decode(data)
        except SerializationError as error:
            raise type(error)(
                f"value {part.name!r} in namespace {part.namespace!r} can't be read: {error.message}", field=part.name
            ) from error
        self._live[part] = value
        return value

    def _data(self, part: Part) -> bytes | None:
        return self._written[part] if part in self._written else self._stored_data(part)

    def _stored_data(self, part: Part) -> bytes | None:
        names = self._stored.get(part.namespace)
        return None if names is None else names.get(part.name)


def with_changes(
    stored: Mapping[str, Mapping[str, bytes]], changes: Mapping[Part, bytes | None]
) -> Mapping[str, Mapping[str, bytes]]:
    """A new mapping with the changes in it; what did not change is shared."""
    if not changes:
        return stored
    result: dict[str, Mapping[str, bytes]] = dict(stored)
    for namespace in {part.namespace for part in changes}:
        names = dict(stored.get(namespace, {}))
        for part, data in changes.items():
            if part.namespace == namespace:
                names.pop(part.name, None) if data is None else names.__setitem__(part.name, data)
        result[namespace] = names
    return {namespace: names for namespace, names in result.items() if names}


def encode_value(part: Part, value: Any) -> bytes:
    """Encode a value; an error names the path from the value's own name: `cart[2].when`."""
    return codec.encode(value, root=part.name)


def decode_field(key: Key, name: str, data: bytes) -> Any:
    """Decode a field of a record; an error names both."""
    try:
        return codec.decode(data)
    except SerializationError as error:
        raise type(error)(f"the {name} of {key.kind} {key.id!r} can't be read: {error.message}", field=name) from error
