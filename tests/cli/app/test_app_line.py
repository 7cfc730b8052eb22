"""Visitors of the page wait in order, know how many are before them, and may leave."""

import threading
import time

import pytest

from cacovid_cli.app.line import Interrupt, Line, Stopped
from cacovid_cli.app.work import followed


def visit(line, name, order, told, interrupt, hold):
    try:
        with line.turn(interrupt, lambda before: told.append((name, before))):
            order.append(name)
            hold.wait(10)
    except Stopped:
        order.append(f"{name} left")


def arrive(line, name, order, told, interrupt=None, hold=None):
    """A visitor in a thread, once it stands in the line."""
    before = len(line._tickets)
    hold = hold or threading.Event()
    arguments = (line, name, order, told, interrupt or Interrupt(), hold)
    thread = threading.Thread(target=visit, args=arguments, daemon=True)
    thread.start()
    wait_for(lambda: len(line._tickets) > before or name in order)
    return thread, hold


def wait_for(condition):
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_visitors_come_in_order_and_know_how_many_are_before():
    line, order, told = Line(poll=0.02), [], []
    visitors = [arrive(line, name, order, told) for name in "abc"]
    wait_for(lambda: sorted(told) == [("b", 1), ("c", 2)])
    assert order == ["a"]
    for number, (thread, hold) in enumerate(visitors):
        wait_for(lambda: len(order) == number + 1 and len(told) == min(number + 2, 3))  # noqa: B023
        hold.set()
        thread.join(10)
    assert order == ["a", "b", "c"]
    assert sorted(told) == [("b", 1), ("c", 1), ("c", 2)]


def test_whoever_leaves_makes_way():
    line, order, told = Line(poll=0.02), [], []
    _, first = arrive(line, "a", order, told)
    leaving = Interrupt()
    arrive(line, "b", order, told, leaving)
    thread, last = arrive(line, "c", order, told)
    leaving.set()
    wait_for(lambda: "b left" in order)
    wait_for(lambda: ("c", 1) in told)
    first.set()
    wait_for(lambda: order[-1] == "c")
    last.set()
    thread.join(10)


def test_an_error_in_a_turn_lets_the_next_in():
    line = Line(poll=0.02)
    with pytest.raises(RuntimeError), line.turn(Interrupt(), print):
        raise RuntimeError
    with line.turn(Interrupt(), print):
        pass


def test_work_is_followed_to_its_end_and_its_error():
    def work(tell):
        tell(1)
        tell(2)
        raise ValueError("three")

    results = followed(work)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
