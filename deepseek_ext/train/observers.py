"""What watches a run without changing a bit of it: telemetry, profiler, TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any


class Observer:
    """Sees the steps of a run; a subclass overrides what it wants to see."""

    def around(self, step: int) -> AbstractContextManager[object]:
        """What is held while step number `step` is computed."""
        return nullcontext()

    def see(self, row: dict[str, Any]) -> None:
        """Takes the metrics of a step, after they are in metrics.jsonl."""

    def close(self) -> None:
        """The run is over, however it ended."""


class Observers(Observer):
    """Several as one; a context that closes them. One that fails is left out from then on."""

    def __init__(self, observers: Iterable[Observer], say: Callable[[str], None]) -> None:
        self.observers = list(observers)
        self.say = say

    def around(self, step: int) -> AbstractContextManager[object]:
        stack = ExitStack()
        for observer in self.observers:
            stack.enter_context(observer.around(step))
        return stack

    def see(self, row: dict[str, Any]) -> None:
        for observer in list(self.observers):
            try:
                observer.see(row)
            except Exception as error:  # a full disk, a service that cannot be reached
                self.observers.remove(observer)
                self._warn(observer, error)

    def close(self) -> None:
        for observer in self.observers:
            try:
                observer.close()
            except Exception as error:
                self._warn(observer, error)

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _warn(self, observer: Observer, error: Exception) -> None:
        self.say(f"WARNING: {type(observer).__name__} stops, the run goes on ({error})")
