"""Signals that stop a run: the first is recorded, a second Ctrl-C ends the process at once."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_llm.runs.preemption import StopSignal

ROOT = Path(__file__).parents[2]
# A call that runs for hours without returning to Python, as a compilation does for minutes.
BUSY = """
import hashlib
from rl_llm.runs.preemption import StopSignal
with StopSignal():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


def test_a_second_ctrl_c_ends_a_process_that_is_inside_a_long_call():
    process = subprocess.Popen([sys.executable, "-c", BUSY], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline() + process.stderr.readline()
        assert "stopping after this step to save the state; Ctrl-C again ends at once" in said
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_recorded_and_handlers_are_put_back(number: signal.Signals):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with StopSignal() as stop:
        assert stop.received == 0
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_an_ignored_ctrl_c_stays_ignored():
    """As for a job that a shell runs in the background: a Ctrl-C in its terminal is for others."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)
            assert stop.received == 0
    finally:
        signal.signal(signal.SIGINT, before)
