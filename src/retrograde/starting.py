"""What has to be settled before torch is imported: Ctrl-C while the command starts, and how its threads wait.

Torch takes a second or two to be imported, and no interrupt in it can be caught.

`python -m retrograde` and the script `retrograde` import this package before a line of the command is run. So from the
import of this module on, the first of all, an interrupt ends the command with one line and exit code 130, until `over`.
A program that imports the package has its signals as they were.

The threads of a command on a connectome sleep while they wait for one another. Else they keep the processor that the
other needs where another program runs too: at a load of 6 on two processors an influence took 2 to 4 times as long.
OpenMP reads how threads wait when it is loaded, and a program that imports the package has that as it was, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

# Their solves pass over many connections between one wait and the next: to wake up costs nothing beside that.
QUESTIONS = {"influence", "importance", "stimulate", "simulate", "fit", "stability"}


def _stop(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # nothing is begun yet that would have to be ended


def over() -> None:
    """From here on it is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    if sys.argv[:1] == ["-m"]:  # so it is while Python looks for what it is to run
        return sys.orig_argv[len(sys.orig_argv) - len(sys.argv)].removeprefix("-m").partition(".")[0] == "retrograde"
    return bool(sys.argv) and os.path.splitext(os.path.basename(sys.argv[0]))[0] == "retrograde"


if (
    _is_command()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _stop)

if _is_command() and QUESTIONS.intersection(sys.argv[1:]):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
