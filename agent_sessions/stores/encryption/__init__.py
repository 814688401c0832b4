"""Encryption at rest, before any store. The first key encrypts, all decrypt; `rekey` encrypts anew what others have."""

from agent_sessions.stores.encryption.keyring import Keyring
from agent_sessions.stores.encryption.rekeying import Problem, Progress, rekey
from agent_sessions.stores.encryption.store import EncryptedStore

__all__ = ["EncryptedStore", "Keyring", "Problem", "Progress", "rekey"]
