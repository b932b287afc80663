"""The delay relay: takes packets from a TUN device, keeps each for half a round trip, puts it back.

The kernel routes what comes from a role's link to this device, and what comes from this device to its destination, so TCP's
own behaviour stays: connecting, slow start, windows, retransmission. Packets carry their offload header (virtio), so a
segment of up to 64 KiB is one read and one write, which is what makes Python fast enough.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import select
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mpc.errors import EnvironmentProblem

DEVICE = "delay0"
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_OFFLOADS = 0x01 | 0x02 | 0x04  # checksums, TCP segments over IPv4 and IPv6
_HEADER_BYTES = 10
_PACKET_BYTES = 1 << 17
_BATCH = 64
REPORT_SECONDS = 1.0
PASS_SECONDS = 80e-6  # what the way to this process and back takes on an idle machine; part of the delay


@dataclass
class RelayCounts:
    """packets, bytes: forwarded. lost: dropped on purpose. overflow: dropped because too much waited, zero in a valid
    measurement. late_mean, late_max: seconds beyond the delay that packets waited."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflow: int = 0
    late_mean: float = 0.0
    late_max: float = 0.0


class DelayLine:
    """Packets in order, each due `delay` seconds after it came; at most `room` bytes.

    chance(): uniform in [0, 1), compared with `loss`.
    """

    def __init__(self, delay: float, loss: float, room: int, chance: Callable[[], float] = random.random) -> None:
        self.delay = delay
        self.loss = loss
        self.room = room
        self.held = 0
        self.counts = RelayCounts()
        self._chance = chance
        self._waiting: deque[tuple[float, bytes]] = deque()

    def put(self, packet: bytes, now: float) -> None:
        """Take in a packet that came at `now`."""
        if self.loss and self._chance() < self.loss:
            self.counts.lost += 1
        elif self.held + len(packet) > self.room:
            self.counts.overflow += 1
        else:
            self.held += len(packet)
            self._waiting.append((now + self.delay, packet))

    def wait(self, now: float) -> float | None:
        """Return the seconds until a packet is due; None when there is none."""
        return max(0.0, self._waiting[0][0] - now) if self._waiting else None

    def take(self, now: float) -> bytes | None:
        """Give out the next packet that is due at `now`."""
        if not self._waiting or self._waiting[0][0] > now:
            return None
        due, packet = self._waiting.popleft()
        counts = self.counts
        self.held -= len(packet)
        counts.packets += 1
        counts.bytes += len(packet)
        late = now - due
        counts.late_mean += (late - counts.late_mean) / counts.packets
        counts.late_max = max(counts.late_max, late)
        return packet


def open_device() -> int:
    """Open a new TUN device in this process's namespace; it is gone when the descriptor is closed."""
    try:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
        fcntl.ioctl(handle, _TUNSETVNETHDRSZ, struct.pack("i", _HEADER_BYTES))
        fcntl.ioctl(handle, _TUNSETOFFLOAD, _OFFLOADS)
    except OSError as error:
        raise EnvironmentProblem(
            f"/dev/net/tun cannot be used ({error.strerror}): modprobe tun; in a container: --device /dev/net/tun"
        ) from None
    return handle


def forward(handle: int, line: DelayLine, report: Path | None = None) -> None:
    """Relay for ever. report: where counts are written, once a second while something passes."""
    clock, reported, told = time.monotonic, 0.0, 0
    while True:
        now = clock()
        if report is not None and line.counts.packets != told and now - reported > REPORT_SECONDS:
            write_counts(report, line.counts)
            reported, told = now, line.counts.packets
        wait = line.wait(now)
        if wait is None and report is not None and line.counts.packets != told:
            wait = REPORT_SECONDS
        readable, _, _ = select.select([handle], [], [], wait)
        if readable:
            _receive(handle, line, clock())
        now = clock()
        while (packet := line.take(now)) is not None:
            _send(handle, packet)


def _receive(handle: int, line: DelayLine, now: float) -> None:
    for _ in range(_BATCH):
        try:
            line.put(os.read(handle, _PACKET_BYTES), now)
        except BlockingIOError:
            return


def _send(handle: int, packet: bytes) -> None:
    try:
        os.write(handle, packet)
    except OSError as error:
        # A device that is not up yet, no memory for now, or a packet that the kernel finds invalid: lost, as on any line.
        if error.errno not in (errno.EIO, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL, errno.EAGAIN):
            raise


def write_counts(path: Path, counts: RelayCounts) -> None:
    """Replace the file as a whole."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(counts)), encoding="utf-8")
    new.rename(path)
