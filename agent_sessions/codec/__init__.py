"""Values to bytes and back: MessagePack with typed extensions. No pickle, no code in data.

    encode(value) -> bytes          exact types only; `SerializationError` names the path inside the value
    decode(data) -> value           the exact inverse; classes come from the registry, never from the data
    decode_list(data, count)        many pieces that follow on one another, in one C call
    register_type(Model, ...)       makes a dataclass, enum, pydantic model or msgspec struct storable
    encode_unchecked(items)         one C call over a list, to compare with what was encoded before
    is_immutable(value)             whether nothing reachable from a value can be changed in place

Format. None, bool, int of 64 bit, float, str, bytes, list, and dict with str keys are plain MessagePack
(https://github.com/msgpack/msgpack/blob/master/spec.md), byte for byte what `msgspec.msgpack.encode` writes:
integers in their shortest form, floats in 64 bit. Everything else is an application extension (`ext`):

| code | type | payload |
|---|---|---|
| 1 | int beyond 64 bit | two's complement, big-endian |
| 2 | datetime | [ISO 8601 text without zone, fold, zone] |
| 3 | date | ISO 8601 text |
| 4 | time | [ISO 8601 text without zone, fold, zone] |
| 5 | timedelta | [days, seconds, microseconds], normalised as Python does |
| 6 | Decimal | its text (General Decimal Arithmetic, to-scientific-string: exact, exponent and sign kept) |
| 7 | UUID | 16 bytes, RFC 9562 order |
| 8 | tuple | array |
| 9 | set | array, elements in the order of their encoded bytes |
| 10 | frozenset | as 9 |
| 11 | dict with a key that is no str | array [key, value, key, value, ...] |
| 12 | object of a registered class | [name, class version, fields], of pydantic models also the names set |

Arrays are MessagePack again, texts of 3 and 6 bare UTF-8. A zone is nil (naive), a str (IANA key of a `ZoneInfo`), an
int (offset of a `timezone`, microseconds), ["timezone", offset, name] or ["pydantic", offset in seconds]. Names set
are the sorted names of `model_fields_set`, left out if all were set.

A code's layout never changes: a new layout takes a new code. Codes 1 to 63 are kept for this library, so an unknown one
among them was written by a newer version: `FormatTooNewError`. Code -1, the specification's timestamp, is read, never
written.

Same value, same bytes: dicts keep their order, sets are sorted. So a change in place shows as other bytes. What is not
kept: that two places held the same object (each gets its own), and `UUID.is_safe`.
"""

from agent_sessions.codec.decoding import decode, decode_list
from agent_sessions.codec.encoding import (
    MAX_DEPTH,
    MAX_VALUE_BYTES,
    encode,
    encode_unchecked,
    is_immutable,
    list_header,
)
from agent_sessions.codec.registry import register_type

__all__ = [
    "MAX_DEPTH",
    "MAX_VALUE_BYTES",
    "decode",
    "decode_list",
    "encode",
    "encode_unchecked",
    "is_immutable",
    "list_header",
    "register_type",
]
