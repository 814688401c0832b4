"""Copying threads from LangGraph's own checkpointers into sessions.

`source` is what a checkpointer of another package is read through, `sqlite`, `postgres`, `redis` and `plainredis` are
such; `thread` copies one thread, `threads` all of them.
"""

from .opening import KINDS, open_source
from .source import Source, SourceError
from .threads import Problem, Progress, import_threads

__all__ = ["KINDS", "Problem", "Progress", "Source", "SourceError", "import_threads", "open_source"]
