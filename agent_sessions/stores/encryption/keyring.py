"""The encryption keys of a process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

from ...encryption_keys import decode_keys
from ...errors import InvalidError
from ..base import Key
from .envelope import Box, id_of

BOXES_KEPT = 1024
"""For how many store keys the derived subkeys are kept, the most recently used."""


class Keyring:
    """Keys: the first encrypts, all decrypt.

    Args:
        keys: 32 bytes each, in base64.
        accept_plaintext: Whether to read also what is not encrypted. Whoever can write to the backend can then put
            plain data in the place of encrypted data, and it is taken for genuine.

    Raises:
        InvalidError: `INVALID_ENCRYPTION_KEYS`: there is none, or one is no such key.
    """

    def __init__(self, keys: Sequence[str], *, accept_plaintext: bool = False) -> None:
        try:
            masters = {id_of(master): master for master in decode_keys(keys)}
        except ValueError as error:
            raise InvalidError("ENCRYPTION_KEYS", str(error), field="keys") from None
        if not masters:
            raise InvalidError("ENCRYPTION_KEYS", "at least one key is needed", field="keys")
        self.key_ids = tuple(id.hex() for id in masters)
        """What each key is called in errors and in what it has encrypted. An id says nothing about its key."""
        self._box = lru_cache(BOXES_KEPT)(partial(Box, masters, accept_plaintext=accept_plaintext))

    def box(self, key: Key) -> Box:
        """What encrypts and decrypts the pieces of a store key."""
        return self._box(key)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self.key_ids)})"
