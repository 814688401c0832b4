"""The sections of one setting or a few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from ..encryption_keys import decode_keys
from .fields import Count, Seconds, Section, TtlSeconds


class CacheSettings(Section):
    """The cache of this process. It is always checked against the store's version, so it is never stale."""

    size: Count = 256
    """Sessions kept, the least recently used leaves first. 0 switches the cache off."""

    max_bytes: Count = 64 * 1024 * 1024
    """Bytes kept in all. 0 switches the cache off. The default is 64 MiB."""


class SQLiteSettings(Section):
    """SQLite, for `AK_SESSION__TYPE` `sqlite`."""

    path: Path = Path("agent-sessions.db")
    """The file, which is made if it is not there, for its owner alone. Relative to the working directory."""

    synchronous: Literal["full", "normal"] = "full"
    """When a commit counts as stored: `full` when it is on the disk, so that it outlives a crash of the machine,
    `normal` when the system has it, so that it outlives a crash of the process."""


class DynamoDBSettings(Section):
    """Amazon DynamoDB, for `AK_SESSION__TYPE` `dynamodb`. Credentials come by the AWS default chain."""

    table_name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{3,255}$")
    """The table: 3 to 255 letters, digits, `_`, `-` and `.`. It has to be named."""

    region: str | None = None
    """The AWS region. None: by the AWS default chain."""

    endpoint_url: str | None = None
    """Another endpoint than the region's own, such as DynamoDB Local at `http://localhost:8000`."""

    create_table: bool = False
    """Make the table when it is missing, with its indexes and its TTL, and wait until it is ready."""

    ttl: TtlSeconds | None = None
    """Seconds, 0 to a century (0 = kept for ever), in place of `AK_SESSION__TTL` where the store is `dynamodb`."""


class EncryptionSettings(Section):
    """Encryption at rest, in every store."""

    keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys of 32 bytes in base64: a JSON list, or separated by commas. The first encrypts, all decrypt. Empty: nothing
    is encrypted."""

    accept_plaintext: bool = False
    """Read also what is not encrypted: for as long as `agent-sessions rekey` has not encrypted what is from before keys
    were configured. Whoever can write to the backend can put plain data in the place of encrypted data while it is
    on."""

    @field_validator("keys", mode="before")
    @classmethod
    def _a_list(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        if not given.lstrip().startswith("["):
            return given.split(",")
        try:
            return json.loads(given)
        except ValueError:  # its message would quote the text
            raise ValueError("this is neither a JSON list nor separated by commas") from None

    @field_validator("keys")
    @classmethod
    def _of_the_right_size(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        decode_keys(key.get_secret_value() for key in keys)
        return keys


class TurnSettings(Section):
    """How a turn takes its session, and what a second turn on the same session does."""

    on_busy: Literal["enqueue", "reject"] = "enqueue"
    """What a turn does while another one has the session: `enqueue` waits for it in order of arrival, `reject` fails
    at once with `SESSION_BUSY`."""

    wait_s: Annotated[Seconds, Field(ge=0, le=86_400)] = 60.0
    """Seconds that a turn waits for its session before it fails with `SESSION_BUSY`: 0 to 86400."""

    lease_s: Annotated[Seconds, Field(ge=0.1, le=3600)] = 30.0
    """Seconds that a running turn holds its session without renewing, so the longest delay after its process died:
    0.1 to 3600. Renewal is automatic while the turn runs."""
