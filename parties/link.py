"""One stream to one peer, and what keeps a session from waiting for a peer that is gone.

gRPC drains a link's outbox from a thread of its own; a reader thread fills its inbox. Neither the sender nor the receiver
ever polls. A `Pulse` sends heartbeats on all links of a process and ends the session of a link that fell silent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from mpc.errors import MpcacheError, PeerLost, PeerSilent
from parties.failures import SessionFinished, from_failure, from_rpc, log, public

Message = Any
INBOX_LIMIT = 64  # messages of at most 1 MiB that may wait unread before the reader stops reading
OUTBOX_LIMIT = 16


class Session:
    """What is common to one session on every role: an id, the current step, and one error that ends it everywhere."""

    def __init__(self, id: str, role: str) -> None:
        self.id = id
        self.role = role
        self.step = "opening the session"
        self.links: list[Link] = []
        self._lock = threading.Lock()
        self._error: MpcacheError | None = None
        self._ended = threading.Event()

    @property
    def error(self) -> MpcacheError | None:
        """Why the session ends, None while it lives or when it succeeded."""
        return self._error

    @property
    def finished(self) -> bool:
        """The client ended the session in good order."""
        return isinstance(self._error, SessionFinished)

    @property
    def ended(self) -> bool:
        """True once `end` was called."""
        return self._ended.is_set()

    def fail(self, error: MpcacheError) -> None:
        """End the session: whoever waits in it raises `error`. The first error counts, later ones are dropped."""
        with self._lock:
            if self._error is not None or self._ended.is_set():
                return
            self._error = error
            links = list(self.links)
        for link in links:
            link.wake()
        self.on_fail()

    def on_fail(self) -> None:
        """Called once when the session fails; wakes whoever waits elsewhere than at a link."""

    def finish(self) -> None:
        """End the session in good order, from any thread."""
        self.fail(SessionFinished("the client ended the session"))

    def check(self) -> None:
        """Raise the session's error if there is one."""
        if self._error is not None:
            raise self._error

    def add(self, link: Link) -> None:
        """Make a link part of the session."""
        with self._lock:
            self.links.append(link)
            failed = self._error is not None
        if failed:
            link.wake()

    def end(self) -> None:
        """Nothing that happens on the links from here on is an error."""
        self._ended.set()


class Link:
    """One stream to one peer, inside a session.

    peer: its name. outbox: messages for gRPC to send, None ends the stream. inbox: (link, message) pairs, message None
    after the end; several links may share one inbox. beat: the heartbeat to send, None if somebody else sends it.
    """

    def __init__(
        self,
        session: Session,
        peer: str,
        beat: Message | None,
        inbox: SimpleQueue[tuple[Link, Message | None]] | None = None,
    ) -> None:
        self.session = session
        self.peer = peer
        self.beat = beat
        self.outbox: SimpleQueue[Message | None] = SimpleQueue()
        self.inbox: SimpleQueue[tuple[Link, Message | None]] = SimpleQueue() if inbox is None else inbox
        self.last_heard = time.monotonic()
        self.waiting_since: float | None = None
        self.room = INBOX_LIMIT
        self.stalled = False  # the reader waits for the inbox to be read
        self.error: MpcacheError | None = None
        self.closed = False
        self.complete = False  # the peer has ended its stream in good order
        self.done = threading.Event()  # the incoming stream has ended, in whatever way
        self._cancel: Callable[[], Any] = lambda: None
        session.add(self)

    def __repr__(self) -> str:
        return f"Link({self.peer})"

    def move(self, session: Session) -> None:
        """Make the link, so far in a session of its own, part of `session`."""
        before, self.session = self.session, session
        session.add(self)
        if before.error is not None:
            session.fail(before.error)

    # ---- sending ---------------------------------------------------------------------------------------------------
    def send(self, message: Message) -> None:
        """Queue a message."""
        self.outbox.put(message)

    def send_bulk(self, message: Message) -> None:
        """Queue a large message once few others wait, so that memory stays bounded."""
        while self.outbox.qsize() >= OUTBOX_LIMIT:
            self.session.check()
            time.sleep(0.002)
        self.outbox.put(message)

    def outgoing(self) -> Iterator[Message]:
        """What gRPC is to send: everything queued until the link is closed."""
        return iter(self.outbox.get, None)

    # ---- receiving -------------------------------------------------------------------------------------------------
    def start(self, incoming: Iterator[Message], cancel: Callable[[], Any]) -> None:
        """Read `incoming` from a thread of its own; cancel() ends the stream at once."""
        self._cancel = cancel
        self.last_heard = time.monotonic()
        threading.Thread(target=self._read, args=(incoming,), name=f"read {self.peer}", daemon=True).start()

    def receive(self, patience: float = 0.0) -> Message:
        """The next message. Raises the session's error, or `PeerLost` after the end of the stream.

        patience: seconds that the peer may take on top of a step's.
        """
        message = self.receive_or_end(patience)
        if message is None:
            raise PeerLost(self.peer, self.session.step, "left the session early")
        return message

    def receive_or_end(self, patience: float = 0.0) -> Message | None:
        """The next message, None after the end of the stream. Raises the session's error."""
        self.session.check()
        self.waiting_since = time.monotonic() + patience
        _, message = self.inbox.get()
        self.waiting_since = None
        if message is None:
            self.session.check()
            self.wake()
        return message

    def wake(self) -> None:
        """Let the receiver look at the session's error."""
        self.inbox.put((self, None))

    def _read(self, incoming: Iterator[Message]) -> None:
        try:
            for message in incoming:
                self.last_heard = time.monotonic()
                kind = message.WhichOneof("content")
                if kind == "heartbeat":
                    continue
                if kind == "finish":
                    self.session.finish()
                    continue
                if kind == "failure":
                    self._fail(from_failure(message.failure, self.peer))
                    return
                if self.inbox.qsize() >= self.room:
                    self._wait_for_room()
                self.inbox.put((self, message))
            self.complete = True
            self.wake()
        except Exception as error:  # gRPC raises plain exceptions on a server, RpcError at a client
            self._fail(from_rpc(error, self.peer, self.session.step))
        finally:
            self.done.set()

    def _wait_for_room(self) -> None:
        self.stalled = True
        while self.inbox.qsize() >= self.room and self.session.error is None and not self.session.ended:
            time.sleep(0.002 if self.room > 1 else 0.05)
        self.last_heard = time.monotonic()
        self.stalled = False

    def _fail(self, error: MpcacheError) -> None:
        if not self.closed:
            self.error = error
            self.session.fail(error)

    # ---- ending ----------------------------------------------------------------------------------------------------
    def close(self, farewell: Message | None = None) -> None:
        """Send what is queued and a last message, and end the outgoing stream."""
        if not self.closed:
            self.closed = True
            if farewell is not None:
                self.outbox.put(farewell)
            self.outbox.put(None)

    def over(self) -> None:
        """The call has ended, whoever ended it."""
        if not self.closed and not self.complete:
            self._fail(PeerLost(self.peer, self.session.step, "the connection ended"))
        self.outbox.put(None)

    def cancel(self) -> None:
        """End the stream at once, in both directions."""
        self.closed = True
        self._cancel()


class Pulse:
    """The thread that beats for every link of a process and notices links that do not.

    deadline: seconds of silence after which a peer is given up; step_seconds: the same for a live peer on which a step
    waits.
    """

    def __init__(self, deadline: float, step_seconds: float) -> None:
        self.deadline = deadline
        self.step_seconds = step_seconds
        self.interval = min(2.0, deadline / 8)
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def add(self, link: Link) -> None:
        """Start to beat for a link and to listen for its peer."""
        link.last_heard = time.monotonic()
        with self._lock:
            self._links.add(link)

    def remove(self, link: Link) -> None:
        """Leave a link alone."""
        with self._lock:
            self._links.discard(link)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self.interval):
            now = time.monotonic()
            with self._lock:
                links = list(self._links)
            if now - before > 3 * self.interval:  # this process itself was paused: do not blame the peers
                for link in links:
                    link.last_heard = now
            before = now
            for link in links:
                try:
                    self._tend(link, now)
                except Exception as error:
                    link.session.fail(public(error, link.session.role))

    def _tend(self, link: Link, now: float) -> None:
        if link.beat is not None and not link.closed and link.outbox.empty():
            link.outbox.put(link.beat)
        since, step = link.waiting_since, link.session.step
        if not link.stalled and not link.done.is_set() and now - link.last_heard > self.deadline:
            link.session.fail(PeerSilent(link.peer, step, f"sent nothing for {self.deadline:g} s"))
        elif since is not None and now - since > self.step_seconds:
            reason = f"is alive, but sent nothing of this step for {self.step_seconds:g} s"
            link.session.fail(PeerSilent(link.peer, step, reason))


def finish_calls(links: list[Link], seconds: float = 1.0) -> None:
    """Give streams a moment to deliver their last message, then cancel those that have not ended."""
    limit = time.monotonic() + seconds
    for link in links:
        if not link.done.wait(max(0.0, limit - time.monotonic())):
            link.cancel()
            log.debug("cancelled the stream to %s", link.peer)
