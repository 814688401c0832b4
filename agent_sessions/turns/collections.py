"""What a turn has done to a collection and not yet committed."""

from __future__ import annotations

from msgspec import Struct, field

from ..stores.base import CollectionChange, EntryRange


class CollectionDraft(Struct):
    """First whole prefixes go, then entries are put or deleted (None)."""

    prefixes: list[str] = field(default_factory=list)
    entries: dict[str, bytes | None] = field(default_factory=dict)

    def put(self, entries: dict[str, bytes | None]) -> None:
        """Put entries, or delete them."""
        self.entries.update(entries)

    def delete_prefix(self, prefix: str) -> None:
        """Delete all entries under a prefix, those put in this turn too."""
        self.entries = {key: data for key, data in self.entries.items() if not key.startswith(prefix)}
        self.prefixes.append(prefix)

    def decides(self, key: str) -> bool:
        """Whether the draft alone says what the entry is."""
        return key in self.entries or key.startswith(tuple(self.prefixes))

    def copy(self) -> CollectionDraft:
        """The draft as it is now."""
        return CollectionDraft(self.prefixes.copy(), self.entries.copy())

    def to_ask(self, asked: EntryRange) -> EntryRange:
        """What to ask the store for, so that enough is left when the draft is laid over it."""
        if asked.limit is None or self.prefixes:
            return asked._replace(limit=None)
        return asked._replace(limit=asked.limit + len(self.entries))

    def merged(self, found: list[tuple[str, bytes]], asked: EntryRange) -> list[tuple[str, bytes]]:
        """A range as it will be: what was found of `to_ask`, and the draft over it."""
        result = {key: data for key, data in found if not self.decides(key)}
        for key, data in self.entries.items():
            if data is not None and _lies_in(key, asked):
                result[key] = data
        ordered = sorted(result.items(), reverse=asked.reverse)  # code point order is the order of UTF-8 bytes
        return ordered[: asked.limit]

    def apply(self, held: dict[str, bytes | None]) -> None:
        """Bring cached entries up to date."""
        if self.prefixes:
            gone = tuple(self.prefixes)
            for key in held:
                if key.startswith(gone):
                    held[key] = None
        for key, data in self.entries.items():
            held.pop(key, None)  # the newest come last
            held[key] = data

    def change(self) -> CollectionChange:
        """The draft as the store takes it."""
        return CollectionChange(delete_prefixes=self.prefixes, entries=self.entries)


def _lies_in(key: str, asked: EntryRange) -> bool:
    return (
        key.startswith(asked.prefix)
        and (asked.after is None or key > asked.after)
        and (asked.before is None or key < asked.before)
    )
