"""Ctrl-C between chunks."""

import signal
import threading

import pytest

from invertjax.cli import interrupts


def test_ctrl_c_waits_until_it_is_asked_for():
    before, done = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the chunk")
        check()
        done.append("another chunk")
    assert done == ["the rest of the chunk"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the chunk")
        signal.raise_signal(signal.SIGINT)
        done.append("more of it")
    assert done == ["the rest of the chunk"]


def test_other_threads_have_no_signals():
    """Python sets their handlers in the main thread alone."""
    done = []

    def body():
        with interrupts.deferred() as check:
            check()
            done.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert done == [True]
