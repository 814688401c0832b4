"""A deployment: the program says nothing about where sessions are kept, the environment does.

    python examples/configured_by_environment.py
    AK_SESSION__TYPE=redis AK_SESSION__REDIS__URL=redis://localhost:6379 python examples/configured_by_environment.py

In memory every start of the program is the first visit. On Redis the visits go on counting, from every process and
every host. This program has no async code: that works as well.

Prints:
    Sessions are kept in ..., until 7 days after their last activity.
    Visit ... of visitor-42
    Visit ... of visitor-42
    The session is at revision ... and has ... lines in its log.
"""

from agent_sessions import Runner, Settings, SyncSession, SyncSessionManager, skill

SESSION_ID = "visitor-42"


@skill
def count_visit(session: SyncSession) -> int:
    """A blocking skill: it gets the blocking half of the session."""
    visits: int = session.update("visits", lambda visits: visits + 1, default=0)
    session.namespace("web").log("visits").append([{"number": visits}])
    return visits


def receptionist(prompt: str, session: object) -> str:
    """Stands for an agent."""
    return f"Visit {count_visit()} of {prompt}"


settings = Settings.load()  # what the environment, or config.yaml, says; Runner() and from_env() read the same
print(f"Sessions are kept in {settings.type}, until {settings.ttl / 86_400:g} days after their last activity.")

runner = Runner()
for _ in range(2):
    print(runner.run_sync(receptionist, SESSION_ID, SESSION_ID).output)

with SyncSessionManager.from_env() as manager, manager.read(SESSION_ID) as session:
    lines = session.namespace("web").log("visits").count()
    print(f"The session is at revision {session.revision} and has {lines} lines in its log.")
