"""The engine: what a process knows of a session, what a turn changes in it, and how that is committed."""
