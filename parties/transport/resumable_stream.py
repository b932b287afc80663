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
from queue import SimpleQueue
from typing import Any

import grpc

from mpc.errors import MpcacheError, PeerLost, PeerSilent, WireError
from parties.events import event
from parties.transport.peer_stream import CONTROL, INBOX_LIMIT, PeerStream, Receiving, Sending
from parties.transport.queues import Inbox, Message, UnacknowledgedQueue
from parties.transport.resumption import (
    GRPC,
    MOST_LINES,
    TOLD_EVERY,
    UNACKNOWLEDGED_LIMIT,
    Call,
    Connection,
    Loss,
    Resumption,
    Route,
    Way,
    request,
)
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import said_why


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
        self._dial_again, self._say_last = resumption.dial_again, resumption.say_last
        self.loss: Loss | None = None  # the connection's, while it is lost
        self.unacknowledged = UnacknowledgedQueue()
        self.received = 0  # messages, heartbeats apart
        self._told = 0  # of them, known to the peer
        self._asked = 0  # the newest epoch that was asked for
        self._heard = False  # a word of the peer, ever
        self._down_since: float | None = None  # since when not a message came, over calls that came to nothing
        self._reading = threading.Lock()
        self._channels: list[grpc.Channel] = []  # made to connect again
        self.way: Way = GRPC  # of the present call
        self.offer: wire.LineOffer | None = None  # of the peer
        self.no_line = ""  # why there is no line, in words
        self._lines = 0  # that were tried

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

    def _call_ended(self, epoch: int, error: Exception | None) -> None:
        """As in `PeerStream`; a dialling side that has all, and may not have told so, tells the peer, who waits for it."""
        cut_off = error is not None and not isinstance(error, MpcacheError) and not said_why(error)
        last = self.receiving is Receiving.COMPLETE and epoch == self.epoch and not self.session.ended
        if cut_off and last and self.route is not None:
            arguments = (self, self.route)
            threading.Thread(target=self._say_last, args=arguments, name=f"last {self.peer}", daemon=True).start()
        super()._call_ended(epoch, error)

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
            threading.Thread(target=self._dial_again, args=(self, self.route), name=f"dial {self.peer}", daemon=True).start()

    def wants_call(self) -> bool:
        """Whether to dial (again)."""
        return self.loss is not None and self.may_return()

    def next_request(self) -> tuple[int, Message]:
        """Return the epoch of the next call, and the message that asks for it."""
        with self._lock, self._reading:
            self._asked = max(self._asked, self.epoch) + 1
            message = self.kind(resume=request(self.secret, self.session.id, self._asked, self.received))
            return self._asked, message

    def connected(self, call: Call, received: int, key: str, channel: grpc.Channel | None = None) -> bool:
        """Go on with the stream in a new call with the peer, which has received so many messages. key: fingerprint of what
        the peer has shown there. False: it is too late."""
        with self._lock, self._reading:
            if not self.wants_call():
                return False
            if channel is not None:
                self._channels.append(channel)
            self.key = lambda: key
            before = self._cancel
            self._go_on(call, received)
        before()
        return True

    def resumed(
        self, resume: wire.Resume, incoming: Iterator[Message], cancel: Callable[[], Any], way: Way = GRPC
    ) -> Iterator[Message]:
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
            self._go_on(Call(resume.epoch, outbox, cancel, way), resume.received)
        self.log_call()
        before()
        self.start(incoming, cancel)
        return self.drain(outbox)

    def _go_on(self, call: Call, received: int) -> None:
        """Go on in a call, with the messages that the peer has not received. Both locks are held."""
        for message in self.unacknowledged.rest(received, self.peer):
            call.outbox.put(message)
        self.outbox.put(None)
        self.outbox, self.epoch, self._cancel, self.loss, self.way = call.outbox, call.epoch, call.cancel, None, call.way
        self._told = self.received
        self.stalled = False
        self.last_heard = time.monotonic()
        self._settle_if_sent()
        self._changed.notify_all()

    def log_call(self) -> None:
        """Log which call the stream goes on in."""
        name = "connection_resumed" if self.way == GRPC else "line_taken"
        way = None if self.way == GRPC else self.way
        event(name, self.session.role, session=self.session.id, peer=self.peer, call=self.epoch, way=way)

    # ---- beside gRPC (`parties.transport.line_dialling`) ---------------------------------------------------------------
    def _take_control(self, message: Message, kind: str | None) -> bool:
        if kind != "offer":
            return super()._take_control(message, kind)
        if self.route is None or self.offer is not None:
            raise WireError(f"{self.peer} offered a line where none is due")
        self.offer = message.offer
        self.try_line()
        return True

    def try_line(self) -> None:
        """Look for a line, in a thread of its own, if the peer offers one and this side wants it; so often at most."""
        if self.offer is not None and self.route is not None and self.route.line is not None and self._lines < MOST_LINES:
            self._lines += 1
            arguments = (self, self.offer)
            threading.Thread(target=self.route.line, args=arguments, name=f"line {self.peer}", daemon=True).start()

    def begin_move(self) -> bool:
        """Note that the stream is about to go on in a call of this side's making: what the present one still says is not
        taken, it comes again. False where the stream cannot move now."""
        with self._lock, self._reading:
            if self.loss is not None or not self.may_return() or not self._heard:
                return False
            error = PeerLost(self.peer, self.session.step, "the connection ended")
            self.loss = Loss(error, time.monotonic() + self.window)
            return True

    def fail_to_move(self) -> None:
        """Give a move up that has begun: the peer may have left the present call, so the stream is dialled again."""
        with self._lock:
            self.outbox.put(None)
            cancel = self._cancel
        cancel()
        if self.route is not None:
            self._dial_again(self, self.route)

    def wait_for_line(self, seconds: float) -> None:
        """Wait until the stream goes over a line, or nothing more comes. Raises the session's error, or `PeerLost` with the
        reason after so long."""

        def settled() -> bool:
            return self.way != GRPC or self.receiving is not Receiving.OPEN or self.session.error is not None

        with self._changed:
            over = self._changed.wait_for(lambda: settled() or bool(self.no_line), seconds)
        self.session.check()
        if not over or not settled():
            reason = self.no_line or f"did not come to a line beside gRPC within {seconds:g} s: see 'bulk' in docs/roles.md"
            raise PeerLost(self.peer, "leaving gRPC", reason)

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
