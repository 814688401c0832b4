"""Where sessions are kept. `base` is the protocol; each backend is a module beside it."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ..errors import InvalidError
from ..settings import STORE_ENTRY_POINTS, EncryptionSettings, Settings
from .base import Store


def open_store(settings: Settings) -> Store:
    """The store that `AK_SESSION__TYPE` names: an installed one, or the dotted path of a class.

    The class is made by its `from_settings(settings)`. With encryption keys, what encrypts stands before it.

    Raises:
        InvalidError: `INVALID_SETTING`: what is named can't be imported, for example because its extra is missing.
    """
    name = settings.type
    try:
        store_class = _store_class(name)
    except (ImportError, AttributeError) as error:
        raise InvalidError(
            "SETTING",
            f"the store {name!r} can't be loaded ({error}). If it is one of ours, install its extra: "
            f"pip install 'agent-sessions-runtime[{name}]'",
            field="AK_SESSION__TYPE",
        ) from error
    store: Store = store_class.from_settings(settings)
    return _encrypted(store, settings.encryption) if settings.encryption.keys else store


def _encrypted(store: Store, settings: EncryptionSettings) -> Store:
    try:
        from .encryption import EncryptedStore, Keyring
    except ModuleNotFoundError as error:
        raise InvalidError(
            "SETTING",
            f"encryption needs the package cryptography ({error}): pip install 'agent-sessions-runtime[encryption]'",
            field="AK_SESSION__ENCRYPTION__KEYS",
        ) from error
    keys = [key.get_secret_value() for key in settings.keys]
    return EncryptedStore(store, Keyring(keys, accept_plaintext=settings.accept_plaintext))


def _store_class(name: str) -> Any:
    for entry_point in entry_points(group=STORE_ENTRY_POINTS, name=name):
        return entry_point.load()
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    return getattr(import_module(module), attribute)
