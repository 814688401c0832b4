"""What a turn has drafted beside its values, and what becomes of the image when it is stored."""

from __future__ import annotations

import time
from collections.abc import Mapping

from msgspec import Struct, field, structs

from ..stores.base import Commit, Committed, LogHead, Part, Row
from .collections import CollectionDraft
from .image import Image, bounded
from .logs import LogDraft


class Drafts(Struct):
    """Logs, collections, record fields and counters that are to change."""

    logs: dict[Part, LogDraft] = field(default_factory=dict)
    collections: dict[Part, CollectionDraft] = field(default_factory=dict)
    fields: dict[str, bytes | None] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.logs or self.collections or self.fields or self.counters)

    def log(self, part: Part) -> LogDraft:
        """The draft of a log, to change."""
        return self.logs.setdefault(part, LogDraft())

    def collection(self, part: Part) -> CollectionDraft:
        """The draft of a collection, to change."""
        return self.collections.setdefault(part, CollectionDraft())

    def count(self, counter: str, more: int) -> None:
        """Add to a counter; less than 0 takes off."""
        self.counters[counter] = self.counters.get(counter, 0) + more

    def write_to(self, commit: Commit) -> None:
        """Put all of it into a commit."""
        commit.logs = {part: draft.change() for part, draft in self.logs.items()}
        commit.collections = {part: draft.change() for part, draft in self.collections.items()}
        commit.fields = self.fields
        commit.counters = {counter: more for counter, more in self.counters.items() if more}

    def folded_into(self, image: Image, values: Mapping[str, Mapping[str, bytes]]) -> Image:
        """The image as it will be: only its version and the logs' last numbers are still to come."""
        windows, heads = dict(image.logs), dict(image.log_heads)
        for part, draft in self.logs.items():
            head = LogHead(draft.remaining(image.count(part)) + len(draft.appended), -1)
            windows[part] = draft.applied(image.window(part), head)
            heads[part] = head
        entries = {part: dict(keyed) for part, keyed in image.entries.items()}
        revisions = dict(image.collections)
        for part, collection in self.collections.items():
            revisions[part] = image.version.revision + 1
            collection.apply(entries.setdefault(part, {}))
        return structs.replace(
            image, values=values, log_heads=heads, collections=revisions, logs=windows, entries=bounded(entries)
        )


def confirmed(folded: Image, commit: Commit, committed: Committed) -> Image:
    """The folded image with what the store said of it."""
    row = committed.row or folded.row or _row_made_now(commit)
    if folded.row is not None and committed.previous_tag != folded.row.record_tag:
        row = structs.replace(row, record_tag=b"")  # somebody amended the record meanwhile: it is read again
    fields = {name: data for name, data in {**folded.fields, **commit.fields}.items() if data is not None}
    heads, windows = dict(folded.log_heads), dict(folded.logs)
    for part, head in committed.log_heads.items():
        heads[part] = head
        windows[part] = structs.replace(windows[part], head=head)
    collections = {**folded.collections, **dict.fromkeys(commit.collections, committed.version.revision)}
    return structs.replace(
        folded,
        version=committed.version,
        now=row.active_at,
        row=structs.replace(row, fields=fields),
        log_heads=heads,
        logs=windows,
        collections=collections,
    )


def _row_made_now(commit: Commit) -> Row:
    """Of a new key whose commit was answered as repeated, by this host's clock: nobody keeps it for longer."""
    now = time.time_ns() // 1_000_000
    return Row(now, now, None, commit.belongs_to, commit.id, None)
