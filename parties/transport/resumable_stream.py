"""A stream that outlives its connection: it goes on in a new call, with every message in order and once.

`parties.transport.resumption` says why that is safe, and who may do it. Beside the states and locks of
`parties.transport.peer_stream`:

* the connection: `Connection.UP`; `LOST` while it is dialled again (at the dialling side) or waited for, until a new call
  goes on or the window is over. Each call has an epoch, greater than all before; what an earlier call still says is ignored.
* `_reading` guards what was received: message count, epoch and connection change under both locks, `_lock` first. So from
  when a count was told to the peer no message of the call before is taken: it comes again in the next one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any

import grpc

from mpc.errors import MpcacheError, PeerLost, PeerSilent, WireError
from parties.errors import Busy
from parties.events import event, log
from parties.transport.peer_stream import CONTROL, INBOX_LIMIT, PeerStream, Receiving, Sending
from parties.transport.queues import Inbox, Message, UnacknowledgedQueue
from parties.transport.resumption import FIRST_PAUSE, LONGEST_PAUSE, TOLD_EVERY, UNACKNOWLEDGED_LIMIT, Route, request
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_rpc, public, said_why


class Connection(Enum):
    """Whether a stream has a connection; see the module."""

    UP = auto()
    LOST = auto()


@dataclass
class Loss:
    """A lost connection. error: what the stream fails with if it does not come back until `limit` (`time.monotonic`).
    reason: why the peer cannot be reached now, in words; empty where that is not known."""

    error: MpcacheError
    limit: float
    reason: str = ""


@dataclass(frozen=True)
class Resumption:
    """What a resumable stream needs. secret: known to both sides. window: seconds for which a lost connection may be made
    again. route: how, at the dialling side; None at the other one."""

    secret: bytes = field(repr=False)
    window: float
    route: Route | None = None


@dataclass(frozen=True)
class Call:
    """One call of a stream. outbox: what it is to send; cancel(): ends it at once."""

    epoch: int
    outbox: SimpleQueue[Message | None]
    cancel: Callable[[], Any]


class ResumableStream(PeerStream):
    """A stream that goes on after its connection was lost; see the module."""

    def __init__(
        self,
        session: Session,
        peer: str,
        heartbeat: Message,
        resumption: Resumption,
        inbox: Inbox[PeerStream] | None = None,
    ) -> None:
        super().__init__(session, peer, heartbeat, inbox)
        self.secret, self.window, self.route = resumption.secret, resumption.window, resumption.route
        self.loss: Loss | None = None  # the connection's, while it is lost
        self.unacknowledged = UnacknowledgedQueue()
        self.received = 0  # messages, heartbeats apart
        self._told = 0  # of them, known to the peer
        self._asked = 0  # the newest epoch that was asked for
        self._heard = False  # a word of the peer, ever
        self._down_since: float | None = None  # since when not a message came, over calls that came to nothing
        self._reading = threading.Lock()
        self._channels: list[grpc.Channel] = []  # made to connect again

    @property
    def connection(self) -> Connection:
        """Whether there is a connection now."""
        return Connection.UP if self.loss is None else Connection.LOST

    # ---- sending ---------------------------------------------------------------------------------------------------
    def dial(self, route: Route, channel: grpc.Channel, opening: Message) -> None:
        """Call the peer; the opening message goes first, with the secret that lets this side resume."""
        opening.resume_secret = self.secret
        super().dial(route, channel, opening)

    def _put(self, message: Message) -> None:
        self.unacknowledged.add(message)
        self.outbox.put(message)

    def is_full(self) -> bool:
        return super().is_full() or len(self.unacknowledged) >= 2 * INBOX_LIMIT

    def wait_for_room(self) -> None:
        """Wait, before a new round, until not too much is kept. What the last round left arrives by itself."""
        if len(self.unacknowledged) < UNACKNOWLEDGED_LIMIT:
            return
        self.waiting_since = time.monotonic()
        self._wait_until(lambda: len(self.unacknowledged) < UNACKNOWLEDGED_LIMIT)
        self.waiting_since = None

    # ---- receiving -------------------------------------------------------------------------------------------------
    def _hear(self) -> None:
        self.last_heard = time.monotonic()
        self._heard, self._down_since = True, None

    def take(self, message: Message, kind: str | None, epoch: int = 0) -> bool:
        """Deal with one message, whose kind is given; False when its call's reader has no more to do."""
        if kind == "heartbeat":
            self._acknowledge(message.heartbeat.received, epoch)
            return True
        with self._reading:
            # A newer call goes on, or will: what it is told has arrived must stay true.
            if epoch != self.epoch or (self.loss is not None and self.route is not None):
                return False
            self._count(message)
            if kind not in CONTROL:  # whoever this wakes may send at once: `_lock` is free
                self.inbox.put(self, message)
        if self.received - self._told >= TOLD_EVERY:
            self._tell()
        return self._take_control(message, kind)

    def take_first(self, message: Message) -> None:
        """Count the message that has opened the stream, which somebody else has read. Raises `WireError` as for others."""
        self._hear()
        with self._reading:
            self._count(message)

    def _count(self, message: Message) -> None:
        self.received += 1
        if message.number != self.received:
            raise WireError(f"{self.peer} sent message {message.number} where message {self.received} was expected")

    def _tell(self) -> None:
        """Say how much has arrived."""
        self._told = self.received
        self.outbox.put(self.kind(heartbeat=wire.Heartbeat(received=self.received)))

    def _acknowledge(self, received: int, epoch: int) -> None:
        """Forget what the peer has received, so many messages in all."""
        with self._lock:
            if epoch == self.epoch:
                self.unacknowledged.acknowledge(received, self.peer)
                self._settle_if_sent()
                if self._senders:
                    self._changed.notify_all()

    def _settle_if_sent(self) -> None:
        """Settle what is closed and has all arrived. The dialling side ends its call after the peer's, to be able to tell
        what has arrived."""
        if self.sending is not Sending.OPEN and not self.unacknowledged:
            self.sending = Sending.SETTLED
            if self.route is None or self.receiving is not Receiving.OPEN:
                self.outbox.put(None)
            self._changed.notify_all()

    def _complete(self) -> None:
        with self._lock:
            if self.receiving is Receiving.OPEN:
                self.receiving = Receiving.COMPLETE
            self._tell()
            if self.sending is Sending.SETTLED:
                self.outbox.put(None)
        self.wake()

    # ---- a lost connection -------------------------------------------------------------------------------------------
    def _ends_well(self, error: Exception | None = None) -> bool:
        """Whether this side has ended the call; else, without the peer's last message, it was cut off. The accepting side
        does once all that it sent has arrived, and needs nothing more: it closes a stream when its session is over."""
        return self.route is None and self.sending is Sending.SETTLED

    def may_return(self) -> bool:
        """Whether the stream outlives the loss of its connection."""
        session = self.session
        alive = (session.error is None or session.finished) and not session.ended
        return self.window > 0 and bool(session.id) and alive and self.receiving is Receiving.OPEN

    def _lose(self, epoch: int, error: MpcacheError, seconds: float | None = None) -> None:
        """Note that the connection is lost, and dial again or wait for the peer to, for the window or so many seconds."""
        seconds = self.window if seconds is None else seconds
        with self._lock, self._reading:
            if epoch != self.epoch or self.loss is not None or self.receiving is Receiving.OVER:
                return
            may_return = self.may_return() and self._heard
            if may_return:
                self._down_since = self._down_since or time.monotonic()
                self.loss = Loss(error, self._down_since + seconds)
                self.outbox.put(None)
            cancel = self._cancel
        if not may_return:
            self.fail(error)
            return
        name, id = self.session.role, self.session.id
        event("connection_lost", name, session=id, peer=self.peer, error=str(error), seconds=seconds)
        cancel()
        if self.route is not None:
            threading.Thread(target=dial_again, args=(self, self.route), name=f"dial {self.peer}", daemon=True).start()

    def wants_call(self) -> bool:
        """Whether to dial (again)."""
        return self.loss is not None and self.may_return()

    def next_request(self) -> tuple[int, Message]:
        """Return the epoch of the next call, and the message that asks for it."""
        with self._lock, self._reading:
            self._asked = max(self._asked, self.epoch) + 1
            message = self.kind(resume=request(self.secret, self.session.id, self._asked, self.received))
            return self._asked, message

    def connected(self, call: Call, received: int, route: Route, channel: grpc.Channel) -> bool:
        """Go on with the stream in a new call with the peer, which has received so many messages. False: it is too late."""
        with self._lock, self._reading:
            if not self.wants_call():
                return False
            self._channels.append(channel)
            self._is_on(route, channel)
            self._go_on(call, received)
        return True

    def resumed(self, resume: wire.Resume, incoming: Iterator[Message], cancel: Callable[[], Any]) -> Iterator[Message]:
        """Go on with a peer that has dialled again, and shown that it may; return what is to be sent to it now.

        Raises `WireError` for an epoch that is not newer than the present one, and for counts that cannot be.
        """
        with self._lock, self._reading:
            if resume.epoch <= self.epoch:
                raise WireError(
                    f"{self.peer} asks for call {resume.epoch} of a stream whose call {self.epoch} is there: a replay, or "
                    "the slower of two"
                )
            before, outbox = self._cancel, SimpleQueue[Message | None]()
            outbox.put(self.kind(resumed=wire.Resumed(received=self.received)))
            self._go_on(Call(resume.epoch, outbox, cancel), resume.received)
        event("connection_resumed", self.session.role, session=self.session.id, peer=self.peer, call=resume.epoch)
        before()
        self.start(incoming, cancel)
        return self.drain(outbox)

    def _go_on(self, call: Call, received: int) -> None:
        """Go on in a call, with the messages that the peer has not received. Both locks are held."""
        for message in self.unacknowledged.rest(received, self.peer):
            call.outbox.put(message)
        self.outbox.put(None)
        self.outbox, self.epoch, self._cancel, self.loss = call.outbox, call.epoch, call.cancel, None
        self._told = self.received
        self.stalled = False
        self.last_heard = time.monotonic()
        self._settle_if_sent()
        self._changed.notify_all()

    def stay_away(self) -> None:
        """Fail: the lost connection has not come back in time."""
        if (loss := self.loss) is None:
            return
        error, reason = loss.error, f": {loss.reason}" if loss.reason else ""
        if isinstance(error, PeerLost):
            error = PeerLost(self.peer, error.step, f"{error.reason} and did not come back within {self.window:g} s{reason}")
        self.fail(error)

    # ---- ending ----------------------------------------------------------------------------------------------------
    def _give_up(self) -> None:
        """Note that nothing more comes, and that what was not sent yet is of no use."""
        with self._lock:
            self.receiving = Receiving.OVER
            if self.sending is not Sending.OPEN:
                self.sending = Sending.SETTLED
                self.outbox.put(None)
            self._changed.notify_all()

    def _end(self) -> None:
        good = self.session.error is None or self.session.finished
        if good:
            self._put(self.kind(end=wire.End()))
        self.sending = Sending.CLOSED
        if not good or self.receiving is Receiving.OVER:
            self.sending = Sending.SETTLED
            self.outbox.put(None)

    def _needs_call(self) -> bool:
        return not self._ends_well()

    def finish_call(self, seconds: float) -> None:
        """Give the call so many seconds to end, then cancel it; close the channels that were made to connect again."""
        super().finish_call(seconds)
        with self._lock:
            channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()

    # ---- signs of life (`parties.transport.heartbeat`) ---------------------------------------------------------------
    def beat(self) -> None:
        """Say how much has arrived, if nothing else waits to be sent."""
        with self._lock:
            of_use = self.sending is not Sending.SETTLED and self.receiving is not Receiving.OVER
            if of_use and self.loss is None and self.outbox.empty():
                self._tell()

    def excuse(self, now: float, seconds: float) -> None:
        """Do not blame the peer for a pause of this process, so long and until now."""
        super().excuse(now, seconds)
        if (loss := self.loss) is not None:
            loss.limit += seconds

    def check_silence(self, now: float, deadline: float) -> None:
        """Fail when a lost connection has not come back in time, or nothing was heard for `deadline` seconds; after half of
        them the dialling side tries a new connection."""
        if (loss := self.loss) is not None:
            if now > loss.limit:
                self.stay_away()
        elif not self.stalled and deadline / 2 < now - self.last_heard <= deadline and self.may_return():
            self.suspect(deadline)
        else:
            super().check_silence(now, deadline)

    def suspect(self, deadline: float) -> None:
        """Try a new connection, at the dialling side, until all of the deadline is over. A peer that never said a word has
        nothing to resume, and all of the deadline."""
        if self.route is not None and self._heard:
            error = PeerSilent(self.peer, self.session.step, f"sent nothing for {deadline:g} s")
            self._lose(self.epoch, error, self.last_heard + deadline - time.monotonic())


def dial_again(stream: ResumableStream, route: Route) -> None:
    """Dial until the stream is connected or given up; then this thread reads the stream."""
    pause = FIRST_PAUSE
    while stream.wants_call():
        try:
            found = _attempt(stream, route)
        except MpcacheError as error:
            stream.fail(error)
            return
        except Exception as error:
            stream.fail(public(error, stream.session.role))
            return
        if found is not None:
            event("connection_resumed", stream.session.role, session=stream.session.id, peer=stream.peer, call=found[1])
            stream.read(*found)
            return
        if pause >= LONGEST_PAUSE / 2 and (loss := stream.loss) is not None:
            loss.reason = route.why()
        stream.wait_until_over(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _attempt(stream: ResumableStream, route: Route) -> tuple[Iterator[Message], int] | None:
    """Make one call: its incoming stream and its epoch, None without a connection. Raises what the peer refuses it with."""
    try:
        channel = route.channel()
    except PeerLost:
        return None
    outbox: SimpleQueue[Message | None] = SimpleQueue()
    epoch, message = stream.next_request()
    outbox.put(message)
    call = route.call(channel)(stream.drain(outbox))
    timer = threading.Timer(min(10.0, max(1.0, stream.window / 3)), call.cancel)
    timer.daemon = True
    timer.start()
    began = time.monotonic()
    try:
        answer = next(call)
        if answer.WhichOneof("content") != "resumed":
            raise WireError(f"{stream.peer} sent '{answer.WhichOneof('content')}' where 'resumed' was expected")
        if stream.connected(Call(epoch, outbox, call.cancel), answer.resumed.received, route, channel):
            return call, epoch
        raise StopIteration
    except (grpc.RpcError, StopIteration) as error:
        outbox.put(None)
        call.cancel()
        channel.close()
        if isinstance(error, grpc.RpcError) and said_why(error):
            problem = from_rpc(error, stream.peer, stream.session.step)
            if not isinstance(problem, Busy):
                raise problem from None
        log.debug("no connection to %s after %.1f s", stream.peer, time.monotonic() - began)
        return None
    except BaseException:
        outbox.put(None)
        call.cancel()
        channel.close()
        raise
    finally:
        timer.cancel()
