"""Copying threads from LangGraph's own checkpointers into sessions.

`source` is what the checkpointer of another package is read through, and `sources` has one for each; `target` is where
threads go. `thread` copies one of them, `threads` all.
"""

from .opening import KINDS, open_source
from .source import Source, SourceError
from .threads import Problem, Progress, import_threads

__all__ = ["KINDS", "Problem", "Progress", "Source", "SourceError", "import_threads", "open_source"]
