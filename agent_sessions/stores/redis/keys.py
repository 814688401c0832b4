"""The names of the keys in Redis.

A session's main key is `<prefix><kind>{<tenant>/<id>}`. What stands in the braces decides, on a cluster, where a key
lives: all keys of one session share it. Tenant and id are escaped there, so that no id can leave its braces or reach
another's, and replaced by their hash where they are long. Indexes are named `<prefix><kind>@<tenant>[/<user>]:<a|g>`.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from agent_sessions.errors import InvalidError
from agent_sessions.stores.base import Key, Part

LONGEST_TAG = 96
"""Bytes of tenant and id in a key name; longer ones are replaced by their hash."""

_KINDS = {"session": b"s", "user": b"u", "app": b"a", "agent": b"g", "run": b"r", "system": b"y"}
_SPECIAL = re.compile(rb"[%#{}/\x00-\x1f\x7f]")
_ESCAPED = re.compile(rb"%([0-9A-F]{2})")


def encode(text: str) -> bytes:
    """Text as bytes; also text that is no valid Unicode, which the layers above refuse, finds its place."""
    return text.encode("utf-8", "surrogatepass")


def decode(raw: bytes) -> str:
    """The reverse of `encode`."""
    return raw.decode("utf-8", "surrogatepass")


def escape(text: str) -> bytes:
    """Text as bytes without braces, slashes and control characters."""
    return _escape(encode(text))


def _escape(raw: bytes) -> bytes:
    return _SPECIAL.sub(lambda found: b"%%%02X" % found[0][0], raw)


def unescape(raw: bytes) -> str:
    """The reverse of `escape`."""
    return decode(_ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), raw))


def user_id(user: str | None) -> bytes:
    """To whom a key belongs, as it is stored: nobody is not the same as the user without a name."""
    return b"" if user is None else b"=" + encode(user)


def user_of(raw: bytes) -> str | None:
    """The reverse of `user_id`."""
    return decode(raw[1:]) if raw else None


def part_id(part: Part) -> bytes:
    """A part's id in the registry, without the letter for its sort, and the field of a value."""
    return escape(part.namespace) + b"/" + encode(part.name)


def part_of(raw: bytes) -> Part:
    """The reverse of `part_id`."""
    namespace, _, name = raw.partition(b"/")
    return Part(unescape(namespace), decode(name))


class KeyNames:
    """The names of one key's keys."""

    __slots__ = ("active_index", "gone_index", "main", "member", "scope", "values")

    def __init__(self, prefix: bytes, key: Key) -> None:
        kind = prefix + _KINDS[key.kind]
        self.main = kind + b"{" + _tag(key.tenant, key.id) + b"}"
        self.values = self.main + b":v"
        self.member = encode(key.id)
        self.scope = kind + b"@" + _short(escape(key.tenant))
        self.active_index = self.scope + b":a"
        self.gone_index = self.scope + b":g"

    def user_indexes(self, user: bytes) -> tuple[bytes, bytes]:
        """The indexes of what belongs to a user, by its `user_id`: by activity, by end."""
        return _user_indexes(self.scope, user)

    def log(self, part: bytes) -> bytes:
        """The list of a log, by its `part_id`."""
        return self.main + b":l" + part

    def collection(self, part: bytes) -> tuple[bytes, bytes]:
        """The hash and the sorted set of a collection, by its `part_id`."""
        return self.main + b":c" + part, self.main + b":z" + part

    def tombstone(self, write_id: bytes) -> bytes:
        """What remembers a deletion for a minute."""
        return self.main + b":d" + write_id.hex().encode()


class Names:
    """All names under one prefix. Those of recent keys are kept: building them costs more than a dictionary look-up."""

    KEPT = 4096

    def __init__(self, prefix: str) -> None:
        if "{" in prefix or "}" in prefix:
            raise InvalidError("PREFIX", "the prefix of Redis keys can't have braces", field="prefix")
        self._prefix = encode(prefix)
        self._kept: dict[Key, KeyNames] = {}

    def of(self, key: Key) -> KeyNames:
        """The names of a key's keys."""
        names = self._kept.get(key)
        if names is None:
            names = KeyNames(self._prefix, key)
            if len(self._kept) >= self.KEPT:
                self._kept.clear()
            self._kept[key] = names
        return names

    def once(self, key: Key) -> KeyNames:
        """The names of a key's keys, not kept."""
        return KeyNames(self._prefix, key)

    def indexes(self, tenant: str, kind: str, belongs_to: str | None) -> tuple[bytes, bytes]:
        """The indexes of a tenant's keys of a kind (of one user): by activity, by end."""
        scope = self._prefix + _KINDS[kind] + b"@" + _short(escape(tenant))
        if belongs_to is None:
            return scope + b":a", scope + b":g"
        return _user_indexes(scope, user_id(belongs_to))

    def channel(self, token: str) -> bytes:
        """The channel on which one event loop of one process is woken."""
        return self._prefix + b"w@" + token.encode()


def _tag(tenant: str, id: str) -> bytes:
    tag = escape(tenant) + b"/" + escape(id)
    return tag if len(tag) <= LONGEST_TAG else _hash(tag)


def _short(escaped: bytes) -> bytes:
    return escaped if len(escaped) <= LONGEST_TAG else _hash(escaped)


def _hash(escaped: bytes) -> bytes:
    # No escaped text has a `#` of its own, so none is taken for a hash.
    return b"#" + blake2b(escaped, digest_size=16).hexdigest().encode()


def _user_indexes(scope: bytes, user: bytes) -> tuple[bytes, bytes]:
    scope += b"/" + _short(_escape(user[1:]))
    return scope + b":a", scope + b":g"
