"""What a link of a lab truly gives: time to connect, round trip, bandwidth of one TCP connection.

`python -m launch.lab.measure listen` serves one measurement after the other; `measure dial ADDRESS SECONDS` prints one.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from launch.lab.lab import Lab, module_environment
from mpc.errors import EnvironmentProblem

PORT = 5001
CONNECTS, PINGS = 3, 21
BLOCK = 1 << 17
_PING, _BULK = b"p", b"b"


@dataclass(frozen=True)
class Link:
    """seconds: to connect; of a round trip (median, least); bandwidth: bits a second after the start."""

    connect: float
    round_trip: float
    least_round_trip: float
    bandwidth: float


def measure(lab: Lab, dialer: str, listener: str, seconds: float = 3.0) -> Link:
    """Measure from one role to another. Raises `EnvironmentProblem` when they cannot talk."""
    me = [sys.executable, "-P", "-m", "launch.lab.measure"]
    options: dict[str, Any] = {"environment": module_environment(), "stdout": subprocess.PIPE}
    server = lab.start(listener, [*me, "listen"], **options)
    assert server.stdout is not None
    try:
        server.stdout.readline()
        command = lab.command(dialer, [*me, "dial", lab.addresses[listener], seconds])
        done = subprocess.run(
            command, env=module_environment(), capture_output=True, text=True, timeout=60 + 4 * seconds, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no error"])[-1]
            raise EnvironmentProblem(f"{dialer} cannot measure its link to {listener}: {last}")
        return Link(**json.loads(done.stdout))
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        lab.processes.remove(server)


def _listen() -> None:
    with socket.create_server(("0.0.0.0", PORT)) as listener:
        print("ready", flush=True)
        while True:
            line, _ = listener.accept()
            with line:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if line.recv(1) == _PING:
                    while data := line.recv(1):
                        line.sendall(data)
                else:
                    line.sendall(json.dumps(_count(line)).encode())


def _count(line: socket.socket) -> float:
    """Return the bits a second that arrive, without the first quarter of the time."""
    buffer, marks, total = bytearray(1 << 20), [], 0
    while count := line.recv_into(buffer):
        total += count
        marks.append((time.perf_counter(), total))
    start = marks[0][0] + (marks[-1][0] - marks[0][0]) / 4
    early = next(mark for mark in marks if mark[0] >= start)
    return (marks[-1][1] - early[1]) * 8 / (marks[-1][0] - early[0])


def _dial(address: str, seconds: float) -> None:
    connects = []
    for _ in range(CONNECTS):
        began = time.perf_counter()
        with socket.create_connection((address, PORT), timeout=30) as line:
            connects.append(time.perf_counter() - began)
            line.sendall(_PING)
    with socket.create_connection((address, PORT), timeout=30) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(_PING)
        times = []
        for _ in range(PINGS):
            began = time.perf_counter()
            line.sendall(b"x")
            line.recv(1)
            times.append(time.perf_counter() - began)
    with socket.create_connection((address, PORT), timeout=30) as line:
        line.sendall(_BULK)
        block, end = bytes(BLOCK), time.perf_counter() + seconds
        while time.perf_counter() < end:
            line.sendall(block)
        line.shutdown(socket.SHUT_WR)
        bandwidth = json.loads(line.recv(1 << 10))
    found = {"connect": statistics.median(connects), "round_trip": statistics.median(times), "least_round_trip": min(times)}
    print(json.dumps({**found, "bandwidth": bandwidth}))


if __name__ == "__main__":
    _listen() if sys.argv[1] == "listen" else _dial(sys.argv[2], float(sys.argv[3]))
