"""A session with all its state as a JSON document.

What a session holds is in it as the codec wrote it (MessagePack with the extensions that `agent_sessions.codec` lists),
in base64: so it comes back byte for byte, on any store. `session-1.schema.json`, beside this module, is the JSON Schema
of the document; `document_schema` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from .. import codec
from ..codec.unreadable import unreadable
from ..errors import FormatTooNewError, InvalidError, SessionError
from ..identifiers import check_collection_key, check_id, check_name
from ..stores.base import Key, Part
from ..stores.lifetime import Course
from ..stores.whole import COMMITS_BEFORE, Content, Whole, flat
from .arguments import LATEST_MS, check_metadata

FORMAT: Final = "agent-sessions/session/1"

_FORMATS = FORMAT.rpartition("/")[0] + "/"
_A_CENTURY_MS = 3_155_760_000_000
_FIELD_TYPES: dict[str, type] = {"metadata": dict} | dict.fromkeys(
    ("agent_id", "memory_space_id", "description", "end_reason", "forked_from"), str
)

Time = Annotated[int, Meta(ge=0, le=LATEST_MS, description="Milliseconds since 1970-01-01 UTC.")]
Age = Annotated[int, Meta(ge=0, le=_A_CENTURY_MS, description="Milliseconds.")]
Data = Annotated[bytes, Meta(description="MessagePack, in base64.")]


class Own(Struct, forbid_unknown_fields=True):
    """What of its lifetime is the session's own, whatever the policy in force. Null: without end."""

    idle_ms: Age | UnsetType | None = UNSET
    end_ms: Age | UnsetType | None = UNSET
    absolute_ms: Age | UnsetType | None = UNSET
    ttl_ms: Age | UnsetType | None = UNSET
    retention_ms: Age | UnsetType | None = UNSET


class Record(Struct, forbid_unknown_fields=True):
    """The session's record."""

    session_id: str
    started_at: Time
    active_at: Time
    revision: Annotated[int, Meta(ge=0, le=2**47, description="How many commits it has seen.")] = 0
    user_id: str | None = None
    ended_at: Time | None = None
    expires_at: Time | None = None
    own: Own = field(default_factory=Own)
    counters: dict[str, Annotated[int, Meta(ge=-(2**53), le=2**53)]] = field(default_factory=dict)
    fields: dict[str, Data] = field(default_factory=dict)


class Document(Struct, forbid_unknown_fields=True):
    """A session with all its state. Values, logs and collections are by namespace, then by name."""

    format: Literal["agent-sessions/session/1"]
    record: Record
    values: dict[str, dict[str, Data]] = field(default_factory=dict)
    logs: dict[str, dict[str, list[Data]]] = field(default_factory=dict)
    collections: dict[str, dict[str, dict[str, Data]]] = field(default_factory=dict)


def document_schema() -> dict[str, Any]:
    """The JSON Schema of a document."""
    schema = msgspec.json.schema(Document)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FORMAT, **schema}


def to_json(key: Key, whole: Whole) -> dict[str, Any]:
    """A session as what `json.dumps` takes."""
    content = whole.content
    started_at, active_at, ended_at, expires_at = content.course
    record = Record(
        session_id=key.id,
        started_at=started_at,
        active_at=active_at,
        revision=whole.commits,
        user_id=content.belongs_to,
        ended_at=ended_at,
        expires_at=expires_at,
        own=msgspec.convert(content.own, Own),
        counters=content.counters,
        fields=content.fields,
    )
    document = Document(FORMAT, record, _nested(content.values), _nested(content.logs), _nested(content.collections))
    exported: dict[str, Any] = msgspec.to_builtins(document)
    return exported


class Imported(NamedTuple):
    """The session in a document."""

    session_id: str
    revision: int
    content: Content


def from_json(data: object) -> Imported:
    """The session in what `json.loads` gave.

    Raises:
        InvalidError: `INVALID_DOCUMENT`: it is none; `field` says what is wrong.
        FormatTooNewError: A newer version has written it.
    """
    _check_format(data)
    try:
        document = msgspec.convert(data, Document)
    except msgspec.ValidationError as error:
        raise _invalid(f"this is no exported session: {error}") from None
    except UnicodeEncodeError:
        raise _invalid("this is no exported session: there is a lone surrogate in its text") from None
    record = document.record
    content = Content(
        course=Course(record.started_at, record.active_at, record.ended_at, record.expires_at),
        own={name: age for name, age in msgspec.structs.asdict(record.own).items() if age is not UNSET},
        belongs_to=record.user_id,
        counters=record.counters,
        fields=record.fields,
        values=flat(document.values),
        logs={part: items for part, items in flat(document.logs).items() if items},
        collections={part: entries for part, entries in flat(document.collections).items() if entries},
    )
    try:
        _check(content)
    except InvalidError as error:
        raise _invalid(error.message, error.field or "data") from None
    return Imported(record.session_id, record.revision, content)


def _check_format(data: object) -> None:
    format = data.get("format") if isinstance(data, Mapping) else None
    if format == FORMAT:
        return
    if isinstance(format, str) and format.startswith(_FORMATS):
        raise FormatTooNewError(
            f"the document is of a format that a newer version of agent-sessions has written; this one reads {FORMAT}. "
            "Upgrade agent-sessions."
        )
    raise _invalid(f"this is no exported session: its format is not {FORMAT}", "format")


def _check(content: Content) -> None:
    """Refuse what no session could hold: a document may come from anywhere."""
    if content.course.active_at < content.course.started_at:
        raise _invalid("active_at lies before started_at", "record.active_at")
    if content.belongs_to is not None:
        check_id(content.belongs_to, "user_id")
    if COMMITS_BEFORE in content.counters:
        raise _invalid(f"{COMMITS_BEFORE!r} is no counter of a session: its revision tells", "record.counters")
    for part in (*content.values, *content.logs, *content.collections):
        check_name(part.namespace, "namespace")
        check_name(part.name, "name")
    for name in (*content.counters, *content.fields):
        check_name(name, "name")
    for entries in content.collections.values():
        for name in entries:
            check_collection_key(name)
    for what, data in content.pieces():
        if len(data) > codec.MAX_VALUE_BYTES:
            raise _invalid(f"{what} has {len(data)} bytes; at most {codec.MAX_VALUE_BYTES} are allowed", what)
        if unreadable(data) is not None:
            raise _invalid(f"{what} is encrypted, and nothing in a document is", what)
    for name, data in content.fields.items():
        _check_field(name, data)


def _check_field(name: str, data: bytes) -> None:
    """A record is read with all its fields, in every listing: none may be in the way of the others."""
    try:
        value = codec.decode(data)
    except SessionError:
        raise _invalid(f"record field {name!r} can't be decoded", f"record.fields.{name}") from None
    if not isinstance(value, _FIELD_TYPES.get(name, object)):
        raise _invalid(f"record field {name!r} is of a wrong type", f"record.fields.{name}")
    if name == "metadata":
        check_metadata(value)


def _invalid(message: str, field: str = "data") -> InvalidError:
    return InvalidError("DOCUMENT", message, field=field)


def _nested(parts: Mapping[Part, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for part, held in parts.items():
        nested.setdefault(part.namespace, {})[part.name] = held
    return nested
