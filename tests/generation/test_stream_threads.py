"""A stream that is fed by an iterable which feeds or resets it, and read while another thread resets it."""

import threading

import pytest
from helpers.streams import held, pictures, same

MEMORIES = pytest.mark.parametrize("memory", ["features", "kv"])


def fed(stream, frames):
    """Feed in a thread, which must end."""
    counts = []
    thread = threading.Thread(target=lambda: counts.append(stream.feed(frames)), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return counts


@MEMORIES
def test_an_iterable_may_reset_and_feed(streaming, memory):
    model, processor = streaming
    stream, plain = (model.stream(processor, memory=memory, tokens_per_frame=3) for _ in range(2))
    frames = pictures(9)

    def resetting():
        yield from frames[:3]
        stream.reset()
        yield from frames[3:5]
        assert stream.feed(frames[5:7]) == 2
        yield from frames[7:]

    assert fed(stream, resetting()) == [7]
    plain.feed(frames[3:])
    assert stream.num_frames == plain.num_frames == 6
    assert same(held(stream), held(plain))


def test_what_is_held_may_be_read_while_another_thread_resets(streaming):
    model, processor = streaming
    stream = model.stream(processor, tokens_per_frame=3)
    stream.feed(pictures(4))
    memory, done, errors = stream._memory, threading.Event(), []

    def read():
        try:
            while not done.is_set():
                stream.memory_bytes(), stream.frame_numbers(), stream.held(), stream.num_groups
        except AttributeError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20_000):
        stream.reset()
        stream._memory = memory
    done.set()
    reader.join(60)
    assert not errors
