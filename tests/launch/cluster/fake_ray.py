"""A Ray of this process: actors that work when they are waited for, and that are lost when a test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """What is raised for a lost actor."""


class _Call:
    """`actor.method.remote(...)`."""

    def __init__(self, actor: _Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any) -> _Future:
        return _Future(self._actor, self._name, arguments)


class _Actor:
    def __init__(self, ray: FakeRay, kind: Callable[[], Any]) -> None:
        self.ray, self.body, self.alive = ray, kind(), True

    def __getattr__(self, name: str) -> _Call:
        return _Call(self, name)


class _Future:
    def __init__(self, actor: _Actor, name: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.name, self.arguments = actor, name, arguments

    def result(self) -> Any:
        """Do the work; raises `RayError` when the actor is lost, before or behind it."""
        assert all(isinstance(one, str | int) for one in self.arguments), "only text and numbers go through Ray"
        result = getattr(self.actor.body, self.name)(*self.arguments)
        assert isinstance(result, str)
        if not self.actor.alive or self.actor.ray.loses(self.name, self.arguments):
            self.actor.alive = False
            raise RayError
        return result


class FakeRay:
    """What `launch.cluster.dealers` uses of Ray. loses(method, arguments): whether the actor is lost once it has done that;
    killed: actors that were ended."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, loses: Callable[[str, Sequence[Any]], bool] = lambda name, arguments: False) -> None:
        self.loses = loses
        self.started = 0
        self.killed = 0

    def remote(self, **options: Any) -> Callable[[Callable[[], Any]], Any]:
        """As `ray.remote(...)`: actors that Ray itself does not start again."""
        assert options["max_restarts"] == options["max_task_retries"] == 0

        def make(kind: Callable[[], Any]) -> Any:
            def start() -> _Actor:
                self.started += 1
                return _Actor(self, kind)

            return SimpleNamespace(remote=start)

        return make

    def wait(self, futures: Sequence[_Future], num_returns: int, timeout: float) -> tuple[list[_Future], list[_Future]]:
        """As `ray.wait`: the first is ready."""
        return [*futures[:num_returns]], [*futures[num_returns:]]

    def get(self, future: _Future) -> Any:
        """As `ray.get`."""
        return future.result()

    def kill(self, actor: _Actor) -> None:
        """As `ray.kill`."""
        actor.alive = False
        self.killed += 1
