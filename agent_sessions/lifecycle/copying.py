"""Copying sessions: a fork here, a document for elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .. import codec
from ..background import uncancelled
from ..errors import (
    SessionConflictError,
    SessionEndedError,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
)
from ..record import SessionRecord
from ..stores.base import Key
from ..stores.whole import Content, Whole, read_whole
from ..turns.commits import Traffic, store_commit
from .copies import from_json, to_json
from .tenant import TenantSessions


class Copying(TenantSessions):
    """`fork`, `export` and `import_`."""

    async def fork(self, session_id: str, new_id: str | None = None) -> SessionRecord:
        """Copy a session with all its state: from here on the two go their own ways.

        The copy starts now, also of what has ended; it belongs to the same user, and names the session that it was made
        of (`forked_from`). It appears whole, or not at all.

        Raises:
            SessionNotFoundError: There is no such session.
            DecryptionError: Something of it can't be decrypted here.
            SessionExistsError: There is one of the new id.
            SessionBusyError: A turn that is running is about to make one of the new id.
            SessionConflictError: Its user is being erased.
        """
        whole = await self._whole(session_id)
        content = whole.content
        content.fields["forked_from"] = codec.encode(session_id)
        content.fields.pop("end_reason", None)
        if content.course.expires_at is not None and content.course.expires_at <= await self._now():
            content.course = content.course._replace(expires_at=None)
        key = self._session_key(str(uuid.uuid4()) if new_id is None else new_id)
        return await self._bring(key, content, whole.commits, as_new=True)

    async def export(self, session_id: str) -> dict[str, Any]:
        """A session with all its state, as a JSON document for `import_`.

        Raises:
            SessionNotFoundError: There is none.
            DecryptionError: Something of it can't be decrypted here.
        """
        return to_json(self._session_key(session_id), await self._whole(session_id))

    async def import_(self, data: Mapping[str, Any], *, session_id: str | None = None) -> SessionRecord:
        """Make a session of what `export` gave, here or elsewhere: the same state byte for byte, and as old.

        It appears whole, or not at all.

        Args:
            data: The document.
            session_id: Another id than the document's.

        Raises:
            InvalidError: `INVALID_DOCUMENT`.
            FormatTooNewError: A newer version has written it.
            SessionExistsError: There is a session of that id.
            SessionBusyError: A turn that is running is about to make one of that id.
            SessionConflictError: Its user is being erased.
            ForbiddenError: It belongs to another user than the one that is acting.
            CommitTooLargeError: The store can't take so much in one step.
        """
        own_id, revision, content = from_json(data)
        content.belongs_to = self._user(content.belongs_to)
        if content.course.ended_at is not None:  # by another clock, which may be ahead: it has ended all the same
            content.course = content.course._replace(ended_at=min(content.course.ended_at, await self._now()))
        key = self._session_key(own_id if session_id is None else session_id)
        return await self._bring(key, content, revision, as_new=False)

    async def _whole(self, session_id: str) -> Whole:
        whole = await read_whole(self.store, await self._owned(session_id))
        if whole is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}")
        whole.content.refuse_unreadable(f"session {session_id!r}")
        return whole

    async def _bring(self, key: Key, content: Content, revision: int, *, as_new: bool) -> SessionRecord:
        """Make a session of this, unless its user is being erased. A cancellation waits until that is decided."""
        return await uncancelled(self._bring_unless_erased(key, content, revision, as_new=as_new))

    async def _bring_unless_erased(self, key: Key, content: Content, revision: int, *, as_new: bool) -> SessionRecord:
        commit = content.commit(await self._lifetime(), commits_before=revision, as_new=as_new)
        try:
            await store_commit(self.store, key, commit, self.lease_ms, Traffic())
        except (SessionConflictError, SessionEndedError, SessionExpiredError):
            raise SessionExistsError(f"there is a session {key.id!r} already", field="session_id") from None
        await self._unless_erased(key, content.belongs_to)
        record = await self._read_back(key)
        self._listeners.tell("created", key, user_id=record.user_id, revision=record.revision)
        return record
