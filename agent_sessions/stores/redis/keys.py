"""The names of the keys in Redis.

A session's main key is `<prefix><kind>{<tenant>/<id>}`. What stands in the braces decides, on a cluster, where a key
lives: all keys of one session share it. Tenant and id are escaped there, so that no id can leave its braces or reach
another's, and replaced by their hash where they are long. Indexes are named `<prefix>{<kind>@<tenant>}[/<user>]:i`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

from agent_sessions.errors import InvalidError
from agent_sessions.stores.base import Key, Kind, Part
from agent_sessions.stores.redis.slots import tag_beside

LONGEST_TAG = 96
"""Bytes of tenant and id in a key name; longer ones are replaced by their hash."""

_KINDS: dict[Kind, bytes] = {
    "session": b"s",
    "user": b"u",
    "app": b"a",
    "agent": b"g",
    "run": b"r",
    "system": b"y",
}
_KIND_OF = {letter: kind for kind, letter in _KINDS.items()}
_SPECIAL = re.compile(rb"[%#{}/\x00-\x1f\x7f]")
_GLOB = re.compile(rb"[\\\[\]*?^-]")
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

    __slots__ = ("hashed", "index", "main", "member", "orders", "prefix", "scope", "values")

    def __init__(self, prefix: bytes, key: Key) -> None:
        kind = prefix + _KINDS[key.kind]
        tag = escape(key.tenant) + b"/" + escape(key.id)
        self.hashed = b""
        """What the name can't tell, since it is too long for it."""
        if len(tag) > LONGEST_TAG:
            tag = _hash(tag)
            self.hashed = b"".join(len(raw).to_bytes(2) + raw for raw in (encode(key.tenant), encode(key.id)))
        self.prefix = prefix
        self.main = kind + b"{" + tag + b"}"
        self.values = self.main + b":v"
        self.member = encode(key.id)
        self.scope = _scope(prefix, key.tenant, key.kind)
        self.index = self.scope + b":i"
        self.orders = self.scope + b":x"
        """On a cluster: which change of a place came last."""

    def user_index(self, user: bytes) -> bytes:
        """The index of what belongs to a user, by its `user_id`."""
        return _user_index(self.scope, user)

    def log(self, part: bytes) -> bytes:
        """The list of a log, by its `part_id`."""
        return self.main + b":l" + part

    def collection(self, part: bytes) -> tuple[bytes, bytes]:
        """The hash and the sorted set of a collection, by its `part_id`."""
        return self.main + b":c" + part, self.main + b":z" + part

    def tombstone(self, write_id: bytes) -> bytes:
        """What remembers a deletion for a minute, in the same slot; from its name nobody learns of what."""
        return self.prefix + b"d@{" + tag_beside(self.main) + b"}" + _digest(self.main + write_id)


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

    def index(self, tenant: str, kind: Kind, belongs_to: str | None) -> bytes:
        """The index of a tenant's keys of a kind (of one user)."""
        scope = _scope(self._prefix, tenant, kind)
        return scope + b":i" if belongs_to is None else _user_index(scope, user_id(belongs_to))

    @property
    def pattern(self) -> bytes:
        """What SCAN looks for; it finds every main key, and a few others."""
        return _GLOB.sub(rb"\\\g<0>", self._prefix) + b"[" + b"".join(_KIND_OF) + b"]{*}"

    def mains(self, names: Iterable[bytes]) -> list[bytes]:
        """Those that are main keys."""
        at = len(self._prefix)
        return [
            name
            for name in names
            if name.startswith(self._prefix)
            and name[at : at + 1] in _KIND_OF
            and name[at + 1 : at + 2] == b"{"
            and name.find(b"}") == len(name) - 1
        ]

    def key_of(self, main: bytes, hashed: bytes | None) -> Key | None:
        """Whose main key this is, given the field that keeps what its name can't tell; None if it is none."""
        kind, tag = _KIND_OF.get(main[len(self._prefix) :][:1]), main[len(self._prefix) + 2 : -1]
        if kind is None or b"}" in tag:
            return None
        if not tag.startswith(b"#"):
            tenant, _, id = tag.partition(b"/")
            return Key(unescape(tenant), kind, unescape(id))
        if hashed is None:
            return None
        end = 2 + int.from_bytes(hashed[:2])
        return Key(decode(hashed[2:end]), kind, decode(hashed[end + 2 :]))

    def channel(self, token: str) -> bytes:
        """The channel on which one event loop of one process is woken."""
        return self._prefix + b"w@" + token.encode()


def _scope(prefix: bytes, tenant: str, kind: Kind) -> bytes:
    """All indexes of a tenant and a kind share what stands in the braces."""
    return prefix + b"{" + _KINDS[kind] + b"@" + _short(escape(tenant)) + b"}"


def _short(escaped: bytes) -> bytes:
    return escaped if len(escaped) <= LONGEST_TAG else _hash(escaped)


def _hash(escaped: bytes) -> bytes:
    # No escaped text has a `#` of its own, so none is taken for a hash.
    return b"#" + _digest(escaped)


def _digest(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16).hexdigest().encode()


def _user_index(scope: bytes, user: bytes) -> bytes:
    return scope + b"/" + _short(_escape(user[1:])) + b":i"
