"""How one piece of data (a value, log item, entry or record field) is encrypted, and what it is bound to.

    0xC1 | format 1 | key id, 8 bytes | nonce, 12 bytes | ciphertext | tag, 16 bytes

AES-256-GCM (NIST SP 800-38D) with a random nonce. The associated data is the two bytes and the key id at its head,
the store key (tenant, kind, id), and the piece's place in it: its sort, and its namespace, name or entry key. Each
text is preceded by its length, so no two places have the same. Ciphertext that is put anywhere else does not decrypt.

Each store key has a subkey of its own, by HKDF-Expand (RFC 5869, section 2.3; SHA-256) from the configured key, which
is uniformly random and so needs no extraction (section 3.3). So the 2^32 encryptions that a random nonce allows to
one AES key (SP 800-38D, section 8.3) are counted for each session by itself. The key id is derived in the same way,
under a label of its own: it says which key is needed, and nothing about it.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...codec.unreadable import ENCRYPTED, KEY_ID_BYTES, MARK, Reason, refusal
from ..base import Key, Part

NONCE_BYTES = 12
TAG_BYTES = 16

_FORMAT = bytes((MARK, ENCRYPTED))
_NONCE_AT = len(_FORMAT) + KEY_ID_BYTES
_CIPHERTEXT_AT = _NONCE_AT + NONCE_BYTES

OVERHEAD_BYTES = _CIPHERTEXT_AT + TAG_BYTES
"""How much longer a piece gets."""

_KEY_ID_LABEL = b"agent-sessions key id"
_SUBKEY_LABEL = b"agent-sessions subkey"


class Unreadable(Exception):
    """A piece can't be decrypted. `refusal` is what to hand out for it, and what the codec explains."""

    def __init__(self, refusal: bytes) -> None:
        super().__init__()
        self.refusal = refusal


def id_of(master: bytes) -> bytes:
    """What names a key in all that it encrypts."""
    return _expand(master, _KEY_ID_LABEL)[:KEY_ID_BYTES]


def value_place(part: Part) -> bytes:
    """The place of a value."""
    return b"V" + _texts(*part)


def log_place(part: Part) -> bytes:
    """The place of an item: its log. An append does not know where in it the item will stand."""
    return b"L" + _texts(*part)


def entry_place(part: Part, name: str) -> bytes:
    """The place of a collection's entry."""
    return b"E" + _texts(*part, name)


def field_place(name: str) -> bytes:
    """The place of a record field."""
    return b"F" + _texts(name)


class Box:
    """Encrypts and decrypts the pieces of one store key. Thread-safe."""

    __slots__ = ("_accept_plaintext", "_address", "_ciphers", "_first", "_head", "_masters")

    def __init__(self, masters: Mapping[bytes, bytes], key: Key, *, accept_plaintext: bool) -> None:
        first = next(iter(masters))
        self._masters = masters
        self._address = _texts(*key)
        self._accept_plaintext = accept_plaintext
        self._head = _FORMAT + first
        self._first = self._derived(masters[first])
        self._ciphers = {first: self._first}

    def seal(self, place: bytes, data: bytes) -> bytes:
        """Encrypt a piece with the first key."""
        nonce = os.urandom(NONCE_BYTES)
        return b"".join((self._head, nonce, self._first.encrypt(nonce, data, self._head + self._address + place)))

    def unseal(self, place: bytes, data: bytes) -> bytes:
        """Decrypt a piece.

        Raises:
            Unreadable: Its key is not here, it is not authentic at this place, or it is plain and must not be.
        """
        head = data[:_NONCE_AT]
        if not head.startswith(_FORMAT):
            return self._unsealed(data)
        if len(data) < OVERHEAD_BYTES:
            raise Unreadable(refusal(Reason.NOT_AUTHENTIC))
        id = head[len(_FORMAT) :]
        cipher = self._ciphers.get(id) or self._cipher(id)
        try:
            return cipher.decrypt(data[_NONCE_AT:_CIPHERTEXT_AT], data[_CIPHERTEXT_AT:], head + self._address + place)
        except InvalidTag:
            raise Unreadable(refusal(Reason.NOT_AUTHENTIC, id)) from None

    def read(self, place: bytes, data: bytes) -> bytes:
        """Decrypt a piece, or give what the codec will refuse when somebody reads it."""
        try:
            return self.unseal(place, data)
        except Unreadable as error:
            return error.refusal

    def read_all(self, place: bytes, pieces: Sequence[bytes]) -> list[bytes]:
        """`read` of many pieces of one place: two thirds of the time, if the first key has encrypted them."""
        head, decrypt, bound_to = self._head, self._first.decrypt, self._head + self._address + place
        try:
            return [
                decrypt(data[_NONCE_AT:_CIPHERTEXT_AT], data[_CIPHERTEXT_AT:], bound_to)
                if data.startswith(head)
                else self.unseal(place, data)
                for data in pieces
            ]
        except (Unreadable, InvalidTag, ValueError):  # ValueError: cut off inside its nonce
            return [self.read(place, data) for data in pieces]

    def renew(self, place: bytes, data: bytes) -> bytes:
        """The piece, encrypted with the first key: the same object if it is already.

        Raises:
            Unreadable: As `unseal`.
        """
        return data if data.startswith(self._head) else self.seal(place, self.unseal(place, data))

    def _cipher(self, id: bytes) -> AESGCM:
        master = self._masters.get(id)
        if master is None:
            raise Unreadable(refusal(Reason.MISSING_KEY, id))
        cipher = self._ciphers[id] = self._derived(master)
        return cipher

    def _derived(self, master: bytes) -> AESGCM:
        return AESGCM(_expand(master, _SUBKEY_LABEL + self._address))

    def _unsealed(self, data: bytes) -> bytes:
        """What is not in our format."""
        if data[:1] != _FORMAT[:1]:
            if self._accept_plaintext:
                return data
            raise Unreadable(refusal(Reason.NOT_ENCRYPTED))
        if data[1:2] > _FORMAT[1:]:
            raise Unreadable(data[:_NONCE_AT])  # says by itself that it is newer
        raise Unreadable(refusal(Reason.NOT_AUTHENTIC))


def _expand(master: bytes, info: bytes) -> bytes:
    """HKDF-Expand of one block: 32 bytes."""
    return hmac.digest(master, info + b"\1", "sha256")


def _texts(*texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "big") + text for text in encoded)
