"""Ctrl-C between chunks."""

import signal
import subprocess
import sys
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


TWICE = """
import signal
from invertjax.cli import interrupts

with interrupts.deferred():
    signal.raise_signal(signal.SIGTERM)
    print("the rest of the chunk", flush=True)
    signal.raise_signal(signal.SIGINT)
    signal.pause()
"""


def test_a_second_signal_does_not_wait():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert done.returncode == 130 and done.stdout == "the rest of the chunk\n"
    assert done.stderr == "error: interrupted at once.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_code_tells_which_signal_came(number):
    with interrupts.deferred():
        assert interrupts.code() == 130
        signal.raise_signal(number)
        assert interrupts.code() == 128 + number
    with interrupts.deferred() as check:
        check()  # another run of this process knows nothing of it


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
