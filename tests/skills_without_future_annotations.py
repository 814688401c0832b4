"""Skills in a module whose annotations are objects, not texts."""

from typing import Optional

from agent_sessions import Session, skill


@skill
async def add(item: str, session: Session) -> str:
    return f"{item} {session.id}"


@skill
async def add_optional(item: str, session: Optional[Session] = None) -> str:  # noqa: UP045 - as people write it
    return f"{item} {session.id if session else None}"


@skill
async def add_union(item: str, session: Session | None = None) -> str:
    return f"{item} {session.id if session else None}"


@skill
async def add_quoted(item: str, session: "Session") -> str:
    return f"{item} {session.id}"


@skill
def add_sync(session: Session, item: str) -> str:
    return f"{item} {session.id}"


@skill
def add_by_id(item: str, session_id: str) -> str:
    return f"{item} {session_id}"
