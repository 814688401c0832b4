"""What the codec may find in the place of a value: something encrypted, or something that could not be decrypted.

It begins with 0xC1, the one byte that MessagePack never uses (https://github.com/msgpack/msgpack/blob/master/spec.md,
"never used"). So it is told from every value, and is an error when it is read itself, not before.

| second byte | what it is | then |
|---|---|---|
| 0 | a refusal: what an `EncryptedStore` hands out for what it can't decrypt; never stored | a reason, a key id |
| 1 | what an `EncryptedStore` has stored, read without one | a key id, ... (`stores/encryption/envelope.py`) |
| higher | the same by a newer version of this library | |
"""

from __future__ import annotations

from enum import IntEnum

from agent_sessions.errors import DecryptionError, FormatTooNewError, SessionError

MARK = 0xC1
REFUSAL = 0
ENCRYPTED = 1
KEY_ID_BYTES = 8


class Reason(IntEnum):
    """Why something could not be decrypted."""

    MISSING_KEY = 1
    NOT_AUTHENTIC = 2
    NOT_ENCRYPTED = 3


def refusal(reason: Reason, key_id: bytes = b"") -> bytes:
    """What stands for data that could not be decrypted."""
    return bytes((MARK, REFUSAL, reason)) + key_id


def unreadable(data: bytes | memoryview) -> SessionError | None:
    """The error that such bytes stand for; None if they are none of these."""
    head = bytes(data[: 3 + KEY_ID_BYTES])
    if len(head) < 2 or head[0] != MARK:
        return None
    if head[1] == REFUSAL:
        return DecryptionError(_why(int.from_bytes(head[2:3]), head[3:].hex()))
    if head[1] == ENCRYPTED:
        key_id = head[2 : 2 + KEY_ID_BYTES].hex()
        return DecryptionError(
            f"the stored data is encrypted (key {key_id}), and no keys are configured here. "
            "Set AK_SESSION__ENCRYPTION__KEYS as where it was written."
        )
    return FormatTooNewError(
        f"the stored data is encrypted in format {head[1]}, which a newer version of agent-sessions has written. "
        "Upgrade agent-sessions."
    )


def _why(reason: int, key_id: str) -> str:
    match reason:
        case Reason.MISSING_KEY:
            return (
                f"the stored data is encrypted with the key {key_id}, which is none of those configured here. "
                "Add that key to AK_SESSION__ENCRYPTION__KEYS."
            )
        case Reason.NOT_ENCRYPTED:
            return (
                "the stored data is not encrypted, and only what is encrypted is taken here. If it is from before keys "
                "were configured, set AK_SESSION__ENCRYPTION__ACCEPT_PLAINTEXT=true and run `agent-sessions rekey`."
            )
        case _:
            return (
                f"the stored data is not what was encrypted for this place{key_id and f' (key {key_id})'}: it was "
                "changed, cut off, or moved here from another place."
            )
