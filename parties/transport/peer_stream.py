"""One stream of messages to one peer, inside a session, over one gRPC call.

gRPC drains a stream's outbox from a thread of its own; a reader thread fills its inbox. Neither the sender nor the receiver
ever polls. `parties.transport.heartbeat` sends heartbeats and ends the session of a stream that fell silent.
`parties.transport.resumable_stream` has the stream that outlives its connection.

States. The two directions end by themselves, each in this order:

* what is sent: `Sending.OPEN`, `CLOSED` once `close` was called, `SETTLED` once the peer has all of it or nothing more can
  be done for that. A plain stream is settled as soon as it is closed.
* what is received: `Receiving.OPEN`, `COMPLETE` once the peer has ended its stream in good order, `OVER` once nothing more
  comes, in whatever way. Only a resumable stream stays complete for a while: its call goes on, to tell what has arrived.

Locks, in the order in which they are taken: `_lock` (what is sent, and the states; with the condition `_changed`, on which
senders wait for room and others for the end), then a resumable stream's `_reading` (what is received). The inbox' own lock
is held alone. `Session.fail` wakes and closes all streams of a session: no lock is held while it is called.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any

import grpc

from mpc.errors import MpcacheError, PeerLost, PeerSilent
from mpc.turns import waiting
from parties.events import log
from parties.transport.pieces import whole
from parties.transport.queues import Inbox, Message
from parties.transport.resumption import Route
from parties.transport.session import Session
from parties.wire.error_codec import from_failure, from_rpc, said_why

INBOX_LIMIT = 64  # messages of at most 1 MiB that may wait unread before the reader stops reading
OUTBOX_LIMIT = 16
CONTROL = ("heartbeat", "end", "finish", "failure", "offer")  # messages that do not go to the inbox


class Sending(Enum):
    """Where what this side sends is; see the module."""

    OPEN = auto()
    CLOSED = auto()
    SETTLED = auto()


class Receiving(Enum):
    """Where what the peer sends is; see the module."""

    OPEN = auto()
    COMPLETE = auto()
    OVER = auto()


class PeerStream:
    """A plain stream: when its connection is lost, so is the stream, and its session fails.

    peer: its name. heartbeat: the message to send as a sign of life. inbox: where received messages go, by default the
    stream's own; several streams may share one. room: how many messages may wait there before the reader stops reading.
    key(): fingerprint of the key that the peer has shown on the present connection.
    """

    def __init__(self, session: Session, peer: str, heartbeat: Message, inbox: Inbox[PeerStream] | None = None) -> None:
        self.session = session
        self.peer = peer
        self.heartbeat = heartbeat
        self.kind: Any = type(heartbeat)
        self.inbox: Inbox[PeerStream] = Inbox() if inbox is None else inbox
        self.outbox: SimpleQueue[Message | None] = SimpleQueue()  # of the present call; None ends it
        self.room = INBOX_LIMIT
        self.key: Callable[[], str] = lambda: ""
        self.error: MpcacheError | None = None  # why the stream failed, while it was of use
        self.sending = Sending.OPEN
        self.receiving = Receiving.OPEN
        self.epoch = 0  # which call of the stream is the present one
        self.last_heard = time.monotonic()
        self.waiting_since: float | None = None  # since when the session waits for this peer
        self.stalled = False  # the reader waits for room in the inbox
        self._senders = 0  # threads that wait for room in the outbox; counted before they look at its size
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._cancel: Callable[[], Any] = lambda: None
        session.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.peer})"

    def move(self, session: Session) -> None:
        """Make the stream, so far in a session of its own, part of `session`."""
        before, self.session = self.session, session
        session.add(self)
        if before.error is not None:
            session.fail(before.error)

    def share(self, inbox: Inbox[PeerStream]) -> None:
        """Let what comes go to an inbox that other streams share. The peer must not have sent anything yet but how the
        stream began."""
        self.inbox = inbox

    # ---- sending ---------------------------------------------------------------------------------------------------
    def send(self, message: Message) -> None:
        """Queue a message; it must not be changed afterwards. Nothing is sent once the stream was closed."""
        with self._lock:
            if self.sending is Sending.OPEN:
                self._put(message)

    def _put(self, message: Message) -> None:
        self.outbox.put(message)

    def send_bulk(self, message: Message) -> None:
        """Queue a large message once few others wait, so that memory stays bounded. Raises the session's error."""
        if self.is_full():
            self._wait_until(lambda: not self.is_full())
        self.send(message)

    def is_full(self) -> bool:
        """Whether `send_bulk` would wait."""
        return self.outbox.qsize() >= OUTBOX_LIMIT

    def wait_for_room(self) -> None:
        """Wait, before a new round, until not too much is kept for the peer; a plain stream keeps nothing."""

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until ready(). Raises the session's error."""
        with waiting(), self._changed:
            self._senders += 1
            try:
                self._changed.wait_for(lambda: self.session.error is not None or ready())
            finally:
                self._senders -= 1
        self.session.check()

    def outgoing(self) -> Iterator[Message]:
        """Yield what gRPC is to send in the present call: all that is queued until the call or the stream is over."""
        return self.drain(self.outbox)

    def drain(self, outbox: SimpleQueue[Message | None]) -> Iterator[Message]:
        """Yield the messages of an outbox until it ends, and let senders know that there is room."""
        while (message := outbox.get()) is not None:
            if self._senders:
                self._notify_senders()
            yield message

    def _notify_senders(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def dial(self, route: Route, channel: grpc.Channel, opening: Message) -> None:
        """Call the peer; the opening message goes first."""
        self.send(opening)
        self._is_on(route, channel)
        call = route.call(channel)(whole(self.outgoing()))
        self.start(call, call.cancel)

    def _is_on(self, route: Route, channel: grpc.Channel) -> None:
        key = route.key(channel)
        self.key = lambda: key

    # ---- receiving -------------------------------------------------------------------------------------------------
    def start(self, incoming: Iterator[Message], cancel: Callable[[], Any]) -> None:
        """Read `incoming` from a thread of its own; cancel() ends the call at once."""
        self._cancel = cancel
        self.last_heard = time.monotonic()
        arguments = (incoming, self.epoch)
        threading.Thread(target=self.read, args=arguments, name=f"read {self.peer}", daemon=True).start()

    def receive(self, patience: float = 0.0) -> Message:
        """Return the next message. Raises the session's error, or `PeerLost` after the end of the stream.

        patience: seconds that the peer may take on top of a step's.
        """
        message = self.receive_or_end(patience)
        if message is None:
            raise PeerLost(self.peer, self.session.step, "left the session early")
        return message

    def receive_or_end(self, patience: float = 0.0) -> Message | None:
        """Return the next message, None after the end of the stream. Raises the session's error."""
        self.session.check()
        self.waiting_since = time.monotonic() + patience
        _, message = self.inbox.get()
        self.waiting_since = None
        if message is None:
            self.session.check()
            self.wake()
        return message

    def unasked(self) -> str:
        """Return the kind of a message that has come where nothing is due, empty without one. Raises the session's error."""
        while not self.inbox.empty():
            _, message = self.inbox.get()
            if message is not None:
                return str(message.WhichOneof("content"))
            self.session.check()
        return ""

    def make_room(self, room: int) -> None:
        """Let so many messages wait unread, from now on."""
        self.room = room
        self.inbox.notify()

    def wake(self) -> None:
        """Let whoever waits here, the receiver included, look at the session's error."""
        self.inbox.put(self, None)
        self.notify()

    def notify(self) -> None:
        """Let whoever waits for room or for the stream's end look at the session."""
        self._notify_senders()
        self.inbox.notify()

    def read(self, incoming: Iterator[Message], epoch: int = 0) -> None:
        """Read one call's messages until it ends. epoch: which call of the stream it is."""
        try:
            for message in incoming:
                self._hear()
                kind = message.WhichOneof("content")
                if kind not in CONTROL and self.inbox.qsize() >= self.room:
                    self._wait_for_reader(epoch)
                if not self.take(message, kind, epoch):
                    return
            self._call_ended(epoch, None)
        except Exception as error:  # gRPC raises plain exceptions on a server, RpcError at a client
            self._call_ended(epoch, error)

    def _hear(self) -> None:
        self.last_heard = time.monotonic()

    def _wait_for_reader(self, epoch: int) -> None:
        """Wait until the inbox has room, or nobody will read it any more."""
        self.stalled = True
        self.inbox.wait_until(lambda: self.inbox.qsize() < self.room or self.session.error is not None or self.session.ended)
        self.last_heard = time.monotonic()
        if epoch == self.epoch:
            self.stalled = False

    def take(self, message: Message, kind: str | None, epoch: int = 0) -> bool:
        """Deal with one message, whose kind is given; False when its call's reader has no more to do."""
        if kind not in CONTROL:
            self.inbox.put(self, message)
            return True
        return self._take_control(message, kind)

    def _take_control(self, message: Message, kind: str | None) -> bool:
        if kind == "end":
            self._complete()
        elif kind == "finish":
            self.session.finish()
        elif kind == "failure":
            self.fail(from_failure(message.failure, self.peer))
            return False
        return True

    def _complete(self) -> None:
        with self._changed:
            if self.receiving is Receiving.OPEN:
                self.receiving = Receiving.COMPLETE
        self.wake()

    # ---- ending ----------------------------------------------------------------------------------------------------
    def _call_ended(self, epoch: int, error: Exception | None) -> None:
        """Act on the end of a call's reader. error: what gRPC or the reader itself raised."""
        if isinstance(error, MpcacheError):
            self.fail(error)
        elif self.receiving is Receiving.COMPLETE or self._ends_well(error):
            self.wake()
            self._give_up()
        else:
            found = from_rpc(error or ConnectionError(), self.peer, self.session.step)
            if error is not None and said_why(error):
                if epoch == self.epoch:
                    self.fail(found)
            else:
                self._lose(epoch, found)

    def _ends_well(self, error: Exception | None) -> bool:
        """Whether a call that ended so has ended in good order."""
        return error is None

    def _lose(self, epoch: int, error: MpcacheError) -> None:
        """Fail: with its connection a plain stream is lost."""
        if self.receiving is not Receiving.OVER:
            self.fail(error)

    def fail(self, error: MpcacheError) -> None:
        """Give the stream up, and its session, unless only the stream's end was left."""
        if self.sending is Sending.OPEN:
            self.error = error
            self.session.fail(error)
        self._give_up()

    def _give_up(self) -> None:
        """Note that nothing more comes."""
        with self._changed:
            self.receiving = Receiving.OVER
            self._changed.notify_all()

    def close(self, farewell: Message | None = None) -> None:
        """Send what is queued and a last message, and end what is sent."""
        with self._changed:
            if self.sending is not Sending.OPEN:
                return
            if farewell is not None:
                self._put(farewell)
            self._end()
            self._changed.notify_all()

    def _end(self) -> None:
        self.sending = Sending.SETTLED
        self.outbox.put(None)

    def call_over(self, epoch: int = 0) -> None:
        """Act on the end of the call of this epoch, whoever ended it."""
        with self._lock:
            if epoch != self.epoch:
                return
            outbox = self.outbox
        if self.receiving is Receiving.OPEN and self._needs_call():
            self._lose(epoch, PeerLost(self.peer, self.session.step, "the connection ended"))
        outbox.put(None)

    def _needs_call(self) -> bool:
        """Whether the stream is of use no more without a call."""
        return self.sending is Sending.OPEN

    def leave_call(self, epoch: int) -> bool:
        """The server has answered the call of this epoch: send no more, unless the stream goes on without it. True when it
        does not."""
        if self.epoch != epoch or self.may_return():
            return False
        self._stop_sending()
        return True

    def _stop_sending(self) -> None:
        with self._changed:
            if self.sending is Sending.OPEN:
                self.sending = Sending.SETTLED

    def may_return(self) -> bool:
        """Whether the stream outlives the loss of its connection."""
        return False

    def cancel(self) -> None:
        """End the call at once, in both directions."""
        self._stop_sending()
        self._cancel()

    def settle(self) -> None:
        """Wait until the peer has all that was sent to it, or nothing more can be done for that."""
        with self._changed:
            self._changed.wait_for(lambda: self.sending is not Sending.CLOSED or self.session.ended)

    def wait_until_over(self, seconds: float) -> bool:
        """Wait so long at most until nothing more comes; False when more may come."""
        with self._changed:
            return self._changed.wait_for(lambda: self.receiving is Receiving.OVER, seconds)

    def finish_call(self, seconds: float) -> None:
        """Give the call so many seconds to end, then cancel it."""
        if not self.wait_until_over(seconds):
            self.cancel()
            log.debug("cancelled the stream to %s", self.peer)

    # ---- signs of life (`parties.transport.heartbeat`) ---------------------------------------------------------------
    def beat(self) -> None:
        """Send a sign of life if nothing else waits to be sent."""
        with self._lock:
            if self.sending is Sending.OPEN and self.outbox.empty():
                self.outbox.put(self.heartbeat)

    def excuse(self, now: float, seconds: float) -> None:
        """Do not blame the peer for a pause of this process, so long and until now."""
        self.last_heard = now

    def check_silence(self, now: float, deadline: float) -> None:
        """Fail with `PeerSilent` when nothing was heard for `deadline` seconds."""
        if not self.stalled and now - self.last_heard > deadline:
            self.fail(PeerSilent(self.peer, self.session.step, f"sent nothing for {deadline:g} s"))
