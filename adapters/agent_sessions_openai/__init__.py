"""agent-sessions for the OpenAI Agents SDK: `OpenAISession` for the SDK's own Runner; an adapter for ours."""

from .session import OpenAISession

__all__ = ["OpenAISession"]
