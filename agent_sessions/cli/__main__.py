"""`python -m agent_sessions.cli` is the `agent-sessions` command."""

from . import main

main()
