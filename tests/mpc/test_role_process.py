"""How a role's process passes on Python's turns."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys, threading, time
from queue import SimpleQueue
from mpc import role_process

turns = [0]

def busy():
    while True:
        turns[0] += 1

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
while turns[0] < 100_000:  # it computes, and gives way only when its time is over
    time.sleep(0.01)
before = passed(100)
role_process.set_up(computes=True)
print(json.dumps({"before": before, "after": passed(100)}), flush=True)
"""


def test_a_message_does_not_wait_for_a_thread_that_computes() -> None:
    """Python's own interval lets each of 200 waits take up to 5 ms."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["after"] < found["before"] / 2, found
