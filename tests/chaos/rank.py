"""``glci`` in a process that kills, or stops, its whole process group at a chosen instant.

``CHAOS_AIM``: ``STAGE:N:DELAY``, the N-th time (from 1) that saving comes to a stage (copy, write,
commit, delete), and seconds from there. ``CHAOS_SIGNAL``: KILL (default) or STOP. ``CHAOS_STEP``: a
file in which the number of the step in hand always stands. ``CHAOS_SLOW``: ``STAGE:SECONDS``, that this
stage takes longer each time, as on a slow disk. All of it is of rank 0.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any


def install(aim: str, number_of_signal: signal.Signals, step_file: str, slow: str) -> None:
    stage, number, delay = aim.split(":") if aim else ("", "0", "0")
    slow_stage, _, longer = slow.partition(":")
    left, wait = int(number), float(delay)
    steps = os.open(step_file, os.O_WRONLY | os.O_CREAT)

    def die() -> None:
        time.sleep(wait)
        os.killpg(0, number_of_signal)

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "glci.step":
            os.pwrite(steps, f"{details[0]:<12}".encode(), 0)
        if event == "glci.checkpoint" and details[0] == slow_stage:
            time.sleep(float(longer))
        if event == "glci.checkpoint" and details[0] == stage:
            left -= 1
            if left == 0:
                # In a thread where there is a delay, so that what is aimed at goes on meanwhile.
                threading.Thread(target=die, daemon=True).start() if wait else die()

    sys.addaudithook(hook)


if __name__ == "__main__":
    from glci_dist.__main__ import entry

    if os.environ["RANK"] == "0":
        chosen = signal.Signals[f"SIG{os.environ.get('CHAOS_SIGNAL', 'KILL')}"]
        install(os.environ.get("CHAOS_AIM", ""), chosen, os.environ["CHAOS_STEP"], os.environ.get("CHAOS_SLOW", ""))
    entry()
