"""Hooks for one block of one thread: what they see, and that nothing of them stays."""

import sys
import threading

import pytest
import torch

from cacovid_hf.utils import hooks as hooks_module
from cacovid_hf.utils.hooks import Hook, attached


def number_of_hooks(module) -> int:
    return sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks"))


@pytest.fixture
def module():
    return torch.nn.Identity()


def doubled(module, args, kwargs):
    return tuple(2 * value for value in args), kwargs


def one_more(module, args, kwargs, output):
    return output + 1


def test_what_goes_in_and_what_comes_out_can_be_changed(module):
    with attached(Hook(module, pre=doubled), Hook(module, post=one_more)):
        assert module(torch.tensor(3)) == 7
    assert module(torch.tensor(3)) == 3
    assert number_of_hooks(module) == 0


def test_first_comes_before_what_is_there(module):
    seen = []
    note = lambda name: lambda *_: seen.append(name)  # noqa: E731
    with (
        attached(Hook(module, pre=note("there"))),
        attached(Hook(module, pre=note("first"), first=True), Hook(module, pre=note("last"))),
    ):
        module(torch.tensor(3))
    assert seen == ["first", "there", "last"]


def test_other_threads_do_not_see_them(module):
    found = []
    with attached(Hook(module, pre=doubled), Hook(module, post=one_more)):
        thread = threading.Thread(target=lambda: found.append(int(module(torch.tensor(3)))))
        thread.start()
        thread.join()
    assert found == [3]


def test_an_error_leaves_none(module):
    with pytest.raises(RuntimeError, match="out of memory"), attached(Hook(module, pre=doubled, post=one_more)):
        raise RuntimeError("out of memory")
    assert number_of_hooks(module) == 0


def test_a_hook_picked_up_before_its_removal_does_nothing(module):
    """As PyTorch calls it then: the entry that says that it takes keyword arguments is gone."""
    with attached(Hook(module, pre=doubled, post=one_more)):
        (before,) = module._forward_pre_hooks.values()
        (behind,) = module._forward_hooks.values()
    assert before(module, (torch.tensor(3),)) is None
    assert behind(module, (torch.tensor(3),), torch.tensor(3)) is None


def test_an_interrupt_while_they_are_attached_leaves_none(module):
    """Interrupted before every line in turn, until the block is reached."""
    interrupted = 0
    while True:
        lines = iter(range(interrupted, -1, -1))

        def trace(frame, event, argument, lines=lines):
            if frame.f_code.co_filename != hooks_module.__file__:
                return None
            if event == "line" and next(lines, None) == 0:
                raise KeyboardInterrupt
            return trace

        entered = False
        before = sys.gettrace()
        try:
            sys.settrace(trace)
            with attached(Hook(module, pre=doubled, post=one_more), Hook(module, pre=doubled)):
                sys.settrace(before)
                entered = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert number_of_hooks(module) == 0
        if entered:
            break
        interrupted += 1
    assert interrupted > 10
