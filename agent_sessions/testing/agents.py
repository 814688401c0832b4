"""An agent for tests that does what it was told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..session import Session

Step = str | Exception | Callable[[str, Session], Any]


class ScriptedAgent:
    """An agent of no framework: each run takes the next step of its script. Give it to a `Runner`.

    It is for tests of hooks, pipelines and session state. To test prompts and tools, take the framework's own scripted
    model: `agents.testing.ScriptedModel`, `GenericFakeChatModel`, ...

    Args:
        steps: A text is answered; an exception is raised; a function `(prompt, session)`, sync or async, is called for
            the answer.
        name: The agent's name in activations.

    Attributes:
        prompts: What the runs were given, in order.
    """

    def __init__(self, *steps: Step, name: str = "scripted") -> None:
        self.__name__ = name
        self.prompts: list[Any] = []
        self._steps = iter(steps)

    async def __call__(self, prompt: Any, session: Session) -> Any:
        """Take the next step.

        Raises:
            AssertionError: The script is over.
        """
        self.prompts.append(prompt)
        step = next(self._steps, None)
        if step is None:
            raise AssertionError(f"the script of agent {self.__name__!r} is over after {len(self.prompts) - 1} runs")
        if isinstance(step, Exception):
            raise step
        if isinstance(step, str):
            return step
        answer = step(prompt, session)
        return await answer if inspect.isawaitable(answer) else answer
