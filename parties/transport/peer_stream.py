"""One stream to one peer, which may outlive its connection.

gRPC drains a link's outbox from a thread of its own; a reader thread fills its inbox. Neither the sender nor the receiver
ever polls. `parties.transport.heartbeat` sends heartbeats and ends the session of a link that fell silent or stays lost;
`parties.transport.resumption` says how a link goes on after its connection was lost.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from mpc.errors import MpcacheError, PeerLost, PeerSilent, PermissionRefused, WireError
from mpc.random import new_seed
from parties.errors import Busy
from parties.events import clean, event, log
from parties.transport.resumption import (
    FIRST_PAUSE,
    KEPT_LIMIT,
    LONGEST_PAUSE,
    SECRET_BYTES,
    TOLD_EVERY,
    Route,
    UnacknowledgedQueue,
    proof,
    request,
)
from parties.transport.session import Session
from parties.wire import wire_pb2 as wire
from parties.wire.error_codec import from_failure, from_rpc, public, said_why

Message = Any
INBOX_LIMIT = 64  # messages of at most 1 MiB that may wait unread before the reader stops reading
OUTBOX_LIMIT = 16
CONTROL = ("heartbeat", "end", "finish", "failure")  # messages that do not go to the inbox


class PeerStream:
    """One stream to one peer, inside a session.

    peer: its name. outbox: messages for gRPC to send, None ends the stream. inbox: (link, message) pairs, message None
    after the end; several links may share one inbox. beat: the heartbeat to send, None if there is none to send.
    window: seconds for which a lost connection may be made again, 0 for never. route: how, at the dialling side.
    key(): fingerprint of the key that the peer has shown.
    """

    def __init__(
        self,
        session: Session,
        peer: str,
        beat: Message | None,
        inbox: SimpleQueue[tuple[PeerStream, Message | None]] | None = None,
        window: float = 0.0,
        route: Route | None = None,
    ) -> None:
        self.session = session
        self.peer = peer
        self.beat = beat
        self.kind: Any = type(beat)
        self.window = window
        self.route = route
        self.outbox: SimpleQueue[Message | None] = SimpleQueue()
        self.inbox: SimpleQueue[tuple[PeerStream, Message | None]] = SimpleQueue() if inbox is None else inbox
        self.last_heard = time.monotonic()
        self.waiting_since: float | None = None
        self.room = INBOX_LIMIT
        self.stalled = False  # the reader waits for the inbox to be read
        self.error: MpcacheError | None = None
        self.closed = False
        self.complete = False  # the peer has ended its stream in good order
        self.done = threading.Event()  # the incoming stream has ended for good, in whatever way
        self.settled = threading.Event()  # closed, and the peer has all that was sent; or nothing more can be done
        self.epoch = 0
        self.lost = False  # there is no connection now
        self.limit = 0.0  # when a lost link is given up
        self.loss: MpcacheError | None = None  # the error if it is
        self.reason = ""  # why the peer cannot be reached, in words
        self.key: Callable[[], str] = lambda: ""  # fingerprint of the peer's, on the present connection
        self.secret = new_seed() if route is not None and window > 0 else b""
        self._kept = UnacknowledgedQueue() if self.secret else None
        self._heard = False
        self._down_since: float | None = None  # since when not a message came, over calls that came to nothing
        self._received = self._told = 0
        self._asked = 0
        self._lock = threading.Lock()  # of what is sent, and of the link's state
        self._reading = threading.Lock()  # of what is received; taken after the other where both are needed
        self._cancel: Callable[[], Any] = lambda: None
        self._channels: list[grpc.Channel] = []
        session.add(self)

    def __repr__(self) -> str:
        return f"PeerStream({self.peer})"

    def move(self, session: Session) -> None:
        """Make the link, so far in a session of its own, part of `session`."""
        before, self.session = self.session, session
        session.add(self)
        if before.error is not None:
            session.fail(before.error)

    # ---- sending ---------------------------------------------------------------------------------------------------
    def send(self, message: Message) -> None:
        """Queue a message; it must not be changed afterwards."""
        with self._lock:
            if not self.closed:
                self._put(message)

    def _put(self, message: Message) -> None:
        if self._kept is not None:
            self._kept.add(message)
        self.outbox.put(message)

    def send_bulk(self, message: Message) -> None:
        """Queue a large message once few others wait, so that memory stays bounded."""
        while self.outbox.qsize() >= OUTBOX_LIMIT or len(self._kept or ()) >= 2 * INBOX_LIMIT:
            self.session.check()
            time.sleep(0.002)
        self.send(message)

    def wait_for_room(self) -> None:
        """Wait, before a new round, until not too much is kept. What the last round left arrives by itself."""
        if self._kept is None or len(self._kept) < KEPT_LIMIT:
            return
        self.waiting_since = time.monotonic()
        while len(self._kept) >= KEPT_LIMIT:
            self.session.check()
            time.sleep(0.002)
        self.waiting_since = None

    def outgoing(self) -> Iterator[Message]:
        """What gRPC is to send in the present call: everything queued until the call or the link is over."""
        return iter(self.outbox.get, None)

    def call(self, channel: grpc.Channel, opening: Message) -> None:
        """Dial: the opening message goes first. Only for a link with a route."""
        assert self.route is not None
        if self.secret:
            opening.resume_secret = self.secret
        self.send(opening)
        self._on(channel)
        call = self.route.call(channel)(self.outgoing())
        self.start(call, call.cancel)

    def _on(self, channel: grpc.Channel) -> None:
        assert self.route is not None
        key = self.route.key(channel)
        self.key = lambda: key

    # ---- receiving -------------------------------------------------------------------------------------------------
    def start(self, incoming: Iterator[Message], cancel: Callable[[], Any]) -> None:
        """Read `incoming` from a thread of its own; cancel() ends the stream at once."""
        self._cancel = cancel
        self.last_heard = time.monotonic()
        arguments = (incoming, self.epoch)
        threading.Thread(target=self.read, args=arguments, name=f"read {self.peer}", daemon=True).start()

    def receive(self, patience: float = 0.0, timeout: float | None = None) -> Message:
        """The next message. Raises the session's error, or `PeerLost` after the end of the stream.

        patience: seconds that the peer may take on top of a step's. timeout: seconds after which `queue.Empty` is raised.
        """
        message = self.receive_or_end(patience, timeout)
        if message is None:
            raise PeerLost(self.peer, self.session.step, "left the session early")
        return message

    def receive_or_end(self, patience: float = 0.0, timeout: float | None = None) -> Message | None:
        """The next message, None after the end of the stream. Raises the session's error."""
        self.session.check()
        self.waiting_since = time.monotonic() + patience
        _, message = self.inbox.get(timeout=timeout)
        self.waiting_since = None
        if message is None:
            self.session.check()
            self.wake()
        return message

    def unasked(self) -> str:
        """The kind of a message that has come where nothing is due, empty without one. Raises the session's error."""
        while not self.inbox.empty():
            _, message = self.inbox.get()
            if message is not None:
                return str(message.WhichOneof("content"))
            self.session.check()
        return ""

    def wake(self) -> None:
        """Let the receiver look at the session's error."""
        self.inbox.put((self, None))

    def read(self, incoming: Iterator[Message], epoch: int) -> None:
        """Read one call's messages until it ends."""
        try:
            for message in incoming:
                self.last_heard = time.monotonic()
                self._heard, self._down_since = True, None
                kind = message.WhichOneof("content")
                if kind == "resume" and epoch == 0 and not self._received:
                    self.inbox.put((self, message))  # the call is another link's: leave what follows to it
                    return
                if kind not in CONTROL and self.inbox.qsize() >= self.room:
                    self._wait_for_room(epoch)
                if not self._take(message, kind, epoch):
                    return
            self._call_ended(epoch, None)
        except Exception as error:  # gRPC raises plain exceptions on a server, RpcError at a client
            self._call_ended(epoch, error)

    def _take(self, message: Message, kind: str | None, epoch: int) -> bool:
        """Deal with one message; False when the reader has no more to do."""
        if kind == "heartbeat":
            self._arrived(message.heartbeat.received, epoch)
            return True
        with self._reading:
            # A newer call goes on, or will: what it is told has arrived must stay true.
            if epoch != self.epoch or (self.lost and self.route is not None):
                return False
            self._number(message)
            if kind not in CONTROL:  # whoever this wakes may send at once: the other lock is free
                self.inbox.put((self, message))
        if self._received - self._told >= TOLD_EVERY:
            self._tell()
        if kind == "end":
            with self._lock:
                self.complete = True
                self._tell()
                if self.settled.is_set():
                    self.outbox.put(None)
            self.wake()
        elif kind == "finish":
            self.session.finish()
        elif kind == "failure":
            self.fail(from_failure(message.failure, self.peer))
            return False
        return True

    def _number(self, message: Message) -> None:
        if self.route is None and self._received == 0 and len(getattr(message, "resume_secret", b"")) == SECRET_BYTES:
            self.secret, self._kept = message.resume_secret, UnacknowledgedQueue()
        self._received += 1
        if self._kept is not None and message.number != self._received:
            raise WireError(f"{self.peer} sent message {message.number} where message {self._received} was expected")

    def _tell(self) -> None:
        """Say how much has arrived, if the stream is one that may be resumed."""
        if self._kept is not None:
            self._told = self._received
            self.outbox.put(self.kind(heartbeat=wire.Heartbeat(received=self._received)))

    def _arrived(self, received: int, epoch: int) -> None:
        """The peer has received so many messages."""
        with self._lock:
            if self._kept is not None and epoch == self.epoch:
                self._kept.told(received, self.peer)
                if self.closed and not self._kept:
                    self._settle()

    def _settle(self) -> None:
        """Nothing is left to send. The dialling side ends its stream after the peer's, to be able to tell of arrivals."""
        self.settled.set()
        if self.route is None or self.complete:
            self.outbox.put(None)

    def _wait_for_room(self, epoch: int) -> None:
        self.stalled = True
        while self.inbox.qsize() >= self.room and self.session.error is None and not self.session.ended:
            time.sleep(0.002 if self.room > 1 else 0.05)
        self.last_heard = time.monotonic()
        if epoch == self.epoch:
            self.stalled = False

    # ---- a lost connection -------------------------------------------------------------------------------------------
    def _call_ended(self, epoch: int, error: Exception | None) -> None:
        if isinstance(error, MpcacheError):
            self.fail(error)
        elif self.complete or (error is None and self._kept is None):
            self.complete = True
            self.wake()
            self._give_up()
        else:
            found = from_rpc(error or ConnectionError(), self.peer, self.session.step)
            if error is not None and said_why(error):
                if epoch == self.epoch:
                    self.fail(found)
            else:
                self._lose(epoch, found, self.window)

    def silent(self, deadline: float) -> None:
        """Nothing was heard for half the deadline: the dialling side tries a new connection until all of it is over. A peer
        that never said a word has nothing to resume, and all of the deadline."""
        if self.route is not None and self._heard:
            error = PeerSilent(self.peer, self.session.step, f"sent nothing for {deadline:g} s")
            self._lose(self.epoch, error, self.last_heard + deadline - time.monotonic())

    def _lose(self, epoch: int, error: MpcacheError, seconds: float) -> None:
        """The connection is lost: dial again or wait for the peer to, for so long."""
        with self._lock, self._reading:
            if epoch != self.epoch or self.lost or self.done.is_set():
                return
            may_return = self.may_return() and self._heard
            if may_return:
                self.lost, self.loss, self.reason = True, error, ""
                self._down_since = self._down_since or time.monotonic()
                self.limit = self._down_since + seconds
                self.outbox.put(None)
            cancel = self._cancel
        if not may_return:
            self.fail(error)
            return
        event(
            "connection_lost", self.session.role, session=self.session.id, peer=self.peer, error=str(error), seconds=seconds
        )
        cancel()
        if self.route is not None:
            attempt = min(10.0, max(1.0, self.window / 3))
            threading.Thread(target=call_again, args=(self, attempt), name=f"dial {self.peer}", daemon=True).start()

    def may_return(self) -> bool:
        """Whether the link outlives the loss of its connection."""
        session = self.session
        alive = (session.error is None or session.finished) and not session.ended
        return self._kept is not None and self.window > 0 and bool(session.id) and alive and not self.complete

    def wants_call(self) -> bool:
        """Whether to dial (again)."""
        return self.lost and self.may_return() and not self.done.is_set()

    def next_request(self) -> tuple[int, Message]:
        """The epoch of the next call, and the message that asks for it."""
        with self._lock, self._reading:
            self._asked = max(self._asked, self.epoch) + 1
            message = self.kind(resume=request(self.secret, self.session.id, self._asked, self._received))
            return self._asked, message

    def connected(
        self, epoch: int, received: int, queue: SimpleQueue[Message | None], cancel: Callable[[], Any], channel: grpc.Channel
    ) -> bool:
        """The peer goes on with the stream in a new call, whose outgoing messages `queue` takes. False: it is too late."""
        with self._lock, self._reading:
            if not self.wants_call():
                return False
            self._channels.append(channel)
            self._on(channel)
            self._go_on(epoch, received, queue, cancel)
        return True

    def resumed(self, resume: wire.Resume, incoming: Iterator[Message], cancel: Callable[[], Any]) -> Iterator[Message]:
        """The peer has dialled again, and shown that it may. What is to be sent to it now.

        Raises `WireError` for an epoch that is not newer than the present one, and for counts that cannot be.
        """
        with self._lock, self._reading:
            if resume.epoch <= self.epoch:
                raise WireError(
                    f"{self.peer} asks for call {resume.epoch} of a stream whose call {self.epoch} is there: a replay, or "
                    "the slower of two"
                )
            before, queue = self._cancel, SimpleQueue[Message | None]()
            queue.put(self.kind(resumed=wire.Resumed(received=self._received)))
            self._go_on(resume.epoch, resume.received, queue, cancel)
        event("connection_resumed", self.session.role, session=self.session.id, peer=self.peer, call=resume.epoch)
        before()
        self.start(incoming, cancel)
        return iter(queue.get, None)

    def _go_on(self, epoch: int, received: int, queue: SimpleQueue[Message | None], cancel: Callable[[], Any]) -> None:
        assert self._kept is not None
        for message in self._kept.rest(received, self.peer):
            queue.put(message)
        self.outbox.put(None)
        self.outbox, self.epoch, self._cancel, self.lost, self.loss = queue, epoch, cancel, False, None
        self._told = self._received
        self.stalled = False
        self.last_heard = time.monotonic()
        if self.closed and not self._kept:
            self._settle()

    def stay_away(self) -> None:
        """The lost connection has not come back in time."""
        assert self.loss is not None
        error = self.loss
        if isinstance(error, PeerLost):
            reason = f": {self.reason}" if self.reason else ""
            error = PeerLost(self.peer, error.step, f"{error.reason} and did not come back within {self.window:g} s{reason}")
        self.fail(error)

    def fail(self, error: MpcacheError) -> None:
        """The link is of no use any more, and so is its session, unless only the link's end was left."""
        if not self.closed:
            self.error = error
            self.session.fail(error)
        self._give_up()

    def _give_up(self) -> None:
        """Nothing more comes, and what was not sent yet is of no use."""
        self.done.set()
        if self._kept is not None:
            self.settled.set()
            if self.closed:
                self.outbox.put(None)

    # ---- ending ----------------------------------------------------------------------------------------------------
    def beats(self) -> None:
        """Send a sign of life if nothing else waits to be sent."""
        with self._lock:
            if self.beat is not None and not self.lost and not self.settled.is_set() and self.outbox.empty():
                if self._kept is not None:
                    self._tell()
                elif not self.closed:
                    self.outbox.put(self.beat)

    def close(self, farewell: Message | None = None) -> None:
        """Send what is queued and a last message, and end the outgoing stream."""
        with self._lock:
            if self.closed:
                return
            if farewell is not None:
                self._put(farewell)
            good = self.session.error is None or self.session.finished
            if self._kept is not None and good:
                self._put(self.kind(end=wire.End()))
            self.closed = True
            if self._kept is None or not good or self.done.is_set():
                self.settled.set()
                self.outbox.put(None)

    def over(self, epoch: int = 0) -> None:
        """The call of this epoch has ended, whoever ended it."""
        with self._lock:
            if epoch != self.epoch:
                return
            queue = self.outbox
        if not self.complete and not (self.closed and self._kept is None):
            self._lose(epoch, PeerLost(self.peer, self.session.step, "the connection ended"), self.window)
        queue.put(None)

    def cancel(self) -> None:
        """End the stream at once, in both directions."""
        self.closed = True
        self._cancel()

    def free(self) -> None:
        """Close the connections that the link has made by itself."""
        with self._lock:
            channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()


def settle(links: list[PeerStream]) -> None:
    """Wait until the peers have all that was sent to them; a lost one has its window, a silent one its deadline."""
    for link in links:
        while not link.settled.wait(0.5):
            if not link.closed or link.session.ended:
                break


def finish_calls(links: list[PeerStream], seconds: float = 1.0) -> None:
    """Give streams a moment to end, then cancel those that have not ended."""
    limit = time.monotonic() + seconds
    for link in links:
        if not link.done.wait(max(0.0, limit - time.monotonic())):
            link.cancel()
            log.debug("cancelled the stream to %s", link.peer)
        link.free()


def stream_of(session: Session | None, resume: wire.Resume, caller: PeerStream, server: str) -> PeerStream:
    """The link that a resume is for. Raises typed errors that say no more than the caller may know."""
    unknown = PeerLost(
        server,
        "resuming",
        f"holds no stream of session {clean(resume.session[:64])} with {caller.peer}: it was started anew since, or the "
        "session is over; ask again",
    )
    if session is None:
        raise unknown
    links: list[PeerStream] = [
        link for link in session.links if link.peer == caller.peer and link.kind is caller.kind and link.secret
    ]
    if not links or links[0].done.is_set():
        raise unknown
    if session.error is not None and not session.finished:
        raise session.error
    expected = proof(links[0].secret, session.id, resume.epoch, resume.received)
    if not hmac.compare_digest(expected, resume.proof):
        raise PermissionRefused(f"{caller.peer} may not resume session {session.id} at {server}: its proof is wrong")
    return links[0]


def call_again(link: PeerStream, seconds: float) -> None:
    """Dial until the link is connected or given up; then this thread reads the link. seconds: for one attempt."""
    pause = FIRST_PAUSE
    while link.wants_call():
        try:
            found = _attempt(link, seconds)
        except MpcacheError as error:
            link.fail(error)
            return
        except Exception as error:
            link.fail(public(error, link.session.role))
            return
        if found is not None:
            event("connection_resumed", link.session.role, session=link.session.id, peer=link.peer, call=found[1])
            link.read(*found)
            return
        if pause >= LONGEST_PAUSE / 2:
            assert link.route is not None
            link.reason = link.route.why()
        link.done.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _attempt(link: PeerStream, seconds: float) -> tuple[Iterator[Message], int] | None:
    """One call: its incoming stream and its epoch, None without a connection. Raises what the peer refuses it with."""
    assert link.route is not None
    try:
        channel = link.route.channel()
    except PeerLost:
        return None
    queue: SimpleQueue[Message | None] = SimpleQueue()
    epoch, message = link.next_request()
    queue.put(message)
    call = link.route.call(channel)(iter(queue.get, None))
    timer = threading.Timer(seconds, call.cancel)
    timer.daemon = True
    timer.start()
    began = time.monotonic()
    try:
        answer = next(call)
        if answer.WhichOneof("content") != "resumed":
            raise WireError(f"{link.peer} sent '{answer.WhichOneof('content')}' where 'resumed' was expected")
        if link.connected(epoch, answer.resumed.received, queue, call.cancel, channel):
            return call, epoch
        raise StopIteration
    except (grpc.RpcError, StopIteration) as error:
        queue.put(None)
        call.cancel()
        channel.close()
        if isinstance(error, grpc.RpcError) and said_why(error):
            problem = from_rpc(error, link.peer, link.session.step)
            if not isinstance(problem, Busy):
                raise problem from None
        log.debug("no connection to %s after %.1f s", link.peer, time.monotonic() - began)
        return None
    except BaseException:
        queue.put(None)
        call.cancel()
        channel.close()
        raise
    finally:
        timer.cancel()
