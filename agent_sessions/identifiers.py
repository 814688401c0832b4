"""What may be an id, a namespace, a name or a collection key. Everything allowed is stored exactly as given."""

from __future__ import annotations

import re

from .errors import InvalidError

MAX_ID_CHARACTERS = 256
MAX_NAME_BYTES = 128
MAX_CONVERSATION_BYTES = 100
MAX_COLLECTION_KEY_BYTES = 512

DEFAULT_TENANT = "default"
DEFAULT_NAMESPACE = "default"

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def check_id(value: object, field: str) -> str:
    """Check the id of a session, user, tenant or agent: 1 to 256 characters, not blank, no control characters.

    Raises:
        InvalidError: `INVALID_SESSION_ID`, `INVALID_USER_ID`, ... after the field's name.
    """
    problem = None
    if not isinstance(value, str):
        problem = f"must be a string, not {type(value).__name__}"
    elif not value or value.isspace():
        problem = "must not be blank"
    elif len(value) > MAX_ID_CHARACTERS:
        problem = f"has {len(value)} characters; at most {MAX_ID_CHARACTERS} are allowed"
    elif _CONTROL.search(value):
        problem = "must not contain control characters"
    elif _utf8_length(value) is None:
        problem = "must be valid Unicode, without lone surrogates"
    if problem is not None:
        raise InvalidError(field.upper(), f"{field} {problem}", field=field)
    assert isinstance(value, str)
    return value


def check_name(value: object, field: str) -> str:
    """Check a namespace, or the name of a value, log or collection: 1 to 128 bytes of UTF-8.

    Raises:
        InvalidError: `INVALID_KEY`.
    """
    return _check_bytes(value, field, MAX_NAME_BYTES)


def check_conversation(value: object) -> str:
    """Check the name of a conversation: 1 to 100 bytes of UTF-8, since names of logs are made with it.

    Raises:
        InvalidError: `INVALID_KEY`.
    """
    return _check_bytes(value, "conversation", MAX_CONVERSATION_BYTES)


def check_collection_key(value: object, field: str = "key") -> str:
    """Check the key of a collection's entry: 1 to 512 bytes of UTF-8.

    Raises:
        InvalidError: `INVALID_KEY`.
    """
    return _check_bytes(value, field, MAX_COLLECTION_KEY_BYTES)


def check_prefix(value: object, field: str = "prefix") -> str:
    """Check a bound or prefix of collection keys: at most 512 bytes of UTF-8, may be empty.

    Raises:
        InvalidError: `INVALID_KEY`.
    """
    return value if value == "" and isinstance(value, str) else _check_bytes(value, field, MAX_COLLECTION_KEY_BYTES)


def _check_bytes(value: object, field: str, most: int) -> str:
    if not isinstance(value, str):
        raise InvalidError("KEY", f"{field} must be a string, not {type(value).__name__}", field=field)
    length = _utf8_length(value)
    if length is None:
        raise InvalidError("KEY", f"{field} must be valid Unicode, without lone surrogates", field=field)
    if not 0 < length <= most:
        raise InvalidError("KEY", f"{field} has {length} bytes of UTF-8; 1 to {most} are allowed", field=field)
    return value


def _utf8_length(value: str) -> int | None:
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        return None
