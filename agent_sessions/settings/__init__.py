"""The configuration: environment variables `AK_SESSION__*` over the `session` section of a YAML file.

`Settings.load()` reads both as they are when it is called; `Settings(type="redis")` takes keywords and
reads neither. A name that does not exist is an error that says which one was probably meant; it is never ignored.
An empty variable (or a YAML key that is empty or null) counts as not set.
"""

from .model import STORE_ENTRY_POINTS, Settings, store_names
from .redis import RedisSettings, SentinelSettings
from .sections import CacheSettings, DynamoDBSettings, EncryptionSettings, SQLiteSettings, TurnSettings
from .variables import Variable

__all__ = [
    "STORE_ENTRY_POINTS",
    "CacheSettings",
    "DynamoDBSettings",
    "EncryptionSettings",
    "RedisSettings",
    "SQLiteSettings",
    "SentinelSettings",
    "Settings",
    "TurnSettings",
    "Variable",
    "store_names",
]
