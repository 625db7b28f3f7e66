"""The stages of a validation: each says that it passed, or its name is in what is said."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import RefusedInput
from pretrain.failures import TrainingStopped


class StageFailed(Exception):
    """A stage failed by something that is no mistake in the input; the cause is chained."""


class Stages:
    """Says on standard output what passed.

    Args:
        is_main: Whether this rank talks to people.
    """

    def __init__(self, is_main: bool) -> None:
        """See the class."""
        self._is_main = is_main
        self.passed: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Let the block be the stage of this name.

        Raises:
            RefusedInput: What the block refused, with the stage's name.
            StageFailed: The block failed in another way.
        """
        began = time.monotonic()
        try:
            yield
        except RefusedInput as problem:
            raise RefusedInput(f"--validate failed at '{name}': {problem}") from problem
        except TrainingStopped as problem:
            raise StageFailed(f"--validate failed at '{name}': {problem}") from None
        except Exception as problem:
            told = f"--validate failed at '{name}': {type(problem).__name__}: {problem}"
            raise StageFailed(told) from problem
        self.passed.append(name)
        self.say(f"passed: {name} ({time.monotonic() - began:.1f} s)")

    def say(self, text: str) -> None:
        """Print a line, on one rank."""
        if self._is_main:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
