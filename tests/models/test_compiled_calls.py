"""Threads that call compiled code: any number at a time, but one that may compile is alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from llrag_cli.models.compiled_calls import CompiledCalls


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


class Caller:
    """A call on a thread, which goes on until it is released."""

    def __init__(self, pool: ThreadPoolExecutor, calls: CompiledCalls, kind: str) -> None:
        self.begun, self._end = threading.Event(), threading.Event()
        self._ended: Future[None] = pool.submit(self._run, calls, kind)

    def _run(self, calls: CompiledCalls, kind: str) -> None:
        with calls.call(kind):
            self.begun.set()
            self._end.wait()

    def release(self) -> None:
        self._end.set()
        self._ended.result()


def known(*kinds: str) -> CompiledCalls:
    calls = CompiledCalls()
    for kind in kinds:
        with calls.call(kind):
            pass
    return calls


def test_calls_of_a_known_kind_run_at_once(pool: ThreadPoolExecutor) -> None:
    models = [known("a") for _ in range(2)]
    both = [Caller(pool, calls, "a") for calls in models]
    for caller in both:
        caller.begun.wait()
    for caller in both:
        caller.release()


@pytest.mark.parametrize(("running", "next_one"), [("new", "a"), ("a", "new"), ("new", "newer")])
def test_a_call_of_a_new_kind_is_alone(pool: ThreadPoolExecutor, running: str, next_one: str) -> None:
    """Also of another model."""
    one, other = known("a"), known("a")
    first = Caller(pool, one, running)
    first.begun.wait()
    second = Caller(pool, other, next_one)
    assert not second.begun.wait(0.05)
    first.release()
    second.begun.wait()
    second.release()


def test_a_call_that_failed_is_still_of_a_new_kind(pool: ThreadPoolExecutor) -> None:
    calls = known("a")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), calls.call("new"):
            raise ZeroDivisionError
    first = Caller(pool, calls, "a")
    first.begun.wait()
    second = Caller(pool, calls, "new")
    assert not second.begun.wait(0.05)
    first.release()
    second.release()
