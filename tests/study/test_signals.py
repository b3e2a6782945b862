"""Signals, in a process of their own: what is taken, and what is left as it was."""

import signal
import subprocess
import sys

import pytest

ASK = """
import os, signal, sys, time
from aae_ray.study.signals import Signals

said = []
signals = Signals(said.append, lambda: None)
with signals.handled(), signals.polling():
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.05)
    print(signals.requested)
    print(*said, file=sys.stderr)
print(signal.getsignal(int(sys.argv[1])) in (signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored, as by nohup"])
def test_a_signal_stops_a_study_unless_it_is_ignored_from_the_start(number: signal.Signals, ignored: bool) -> None:
    def prepare() -> None:
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    done = subprocess.run(
        [sys.executable, "-c", ASK, str(int(number))], capture_output=True, text=True, preexec_fn=prepare, check=True
    )
    assert done.stdout.split() == [str(not ignored), "True"]
    hint = "Ctrl-C again" if number == signal.SIGINT else f"{number.name} received"  # as whoever sent it would say
    assert (hint in done.stderr) == (not ignored) and ("Ctrl-C" in done.stderr) <= (number == signal.SIGINT)


TWICE = """
import os, signal, sys
from aae_ray.study.signals import Signals

signals = Signals(lambda text: None, lambda: print("left"), ends_process=False)
written = []
with signals.handled():
    try:
        with signals.polling():
            os.kill(os.getpid(), signal.SIGINT)
            with signals.deferred():  # a line of the journal
                os.kill(os.getpid(), signal.SIGINT)
                written.append("whole")
            written.append("beyond")
    except KeyboardInterrupt:
        print(*written)
print("goes on")
"""


def test_a_second_signal_ends_the_study_and_not_the_program_that_runs_it() -> None:
    """What must not be left half done is done first."""
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["whole", "goes on"]
