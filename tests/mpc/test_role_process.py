"""How a role's process passes on Python's turns."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys, threading, time
from queue import SimpleQueue
from mpc import role_process

def busy():
    while True:
        sum(range(50))

def passed(count):  # seconds until a message has gone so often from one thread to another and back
    there, back = SimpleQueue(), SimpleQueue()
    def answer():
        for _ in range(count):
            back.put(there.get())
    threading.Thread(target=answer, daemon=True).start()
    began = time.perf_counter()
    for _ in range(count):
        there.put(None)
        back.get()
    return time.perf_counter() - began

threading.Thread(target=busy, daemon=True).start()
before = passed(20)
role_process.set_up(computes=True)
print(json.dumps({"before": before, "after": passed(20)}), flush=True)
"""


def test_a_message_does_not_wait_for_a_thread_that_computes() -> None:
    """Python's own interval lets each of 40 waits take up to 5 ms."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["after"] < found["before"] / 3, found
