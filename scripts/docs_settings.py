"""A MkDocs hook: puts the table of all settings where a page says `<!-- settings -->`."""

from __future__ import annotations

from typing import Any

from agent_sessions.settings import Settings

MARKER = "<!-- settings -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return markdown.replace(MARKER, settings_table())


def settings_table() -> str:
    """The settings as a Markdown table: variable, default, what it does."""
    rows = ["| variable | default | what it does |", "| --- | --- | --- |"]
    for variable in Settings.variables().values():
        default = "none" if variable.default is None else f"`{_as_written(variable.default)}`"
        description = variable.description.replace("|", "\\|")
        rows.append(f"| `{variable.name}` | {default} | {description} |")
    return "\n".join(rows)


def _as_written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
