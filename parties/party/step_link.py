"""One group of sessions in step at a compute party: its streams to the other parties, and the thread that makes its rounds.

Streams of a group are beside those of its sessions, which go on to say how each session ends. A party dials the parties of
lower index, as for a session (`parties.party.rendezvous`). Party 0 ends a group, once its last session there is over; the
others end it after party 0. A peer that is lost ends the group, and every session in it, with its name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

from mpc.errors import MpcacheError, PeerLost, WireError
from mpc.in_step import STEP, StepGroup
from parties.errors import SessionFinished
from parties.identity.trust import Peer, parties_of
from parties.party.rendezvous import PEER_BEAT, Network
from parties.transport.connection import connect
from parties.transport.gathering import Gathering
from parties.transport.opening import dialled
from parties.transport.peer_stream import INBOX_LIMIT, PeerStream
from parties.transport.session import Session
from parties.transport.trunk import StreamTrunk
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import public, to_failure


class StepLink(Session):
    """A group's streams, with the group itself. id: the same at all parties; over(link): called at the very end."""

    def __init__(self, id: str, network: Network, over: Callable[[StepLink], None]) -> None:
        config = network.config
        super().__init__(id, config.name)
        self.step = STEP
        self._network = network
        self._over = over
        self._trunk = StreamTrunk(self, config.party_names, config.index)
        self.group = StepGroup(self._trunk, config.step_seconds)
        others = [name for name in config.party_names if name != config.name]
        self._attached = Gathering[PeerStream](others, self.check)
        self._channels: list[grpc.Channel] = []
        self._closing = False

    def start(self) -> None:
        """Connect with the other parties and make rounds, in a thread of its own."""
        threading.Thread(target=self._main, name=f"in step {self.id[:8]}", daemon=True).start()

    def attach(self, stream: PeerStream) -> None:
        """Let a peer of higher index, which has dialled, join. Raises `WireError` for another one, and `PeerLost`, which
        ends the group, for one that is in it: a stream that goes on does not dial, so it was started again, and what it was
        doing is gone. Sessions to come get a group of their own."""
        names = self._network.config.party_names
        if names.index(stream.peer) <= self._network.config.index:
            raise WireError(f"{stream.peer} dialled for sessions in step, which is not its part")
        if stream.peer in self._attached:
            lost = PeerLost(stream.peer, STEP, "it was started again while sessions ran in step with it")
            self.fail(lost)
            raise lost
        stream.move(self)
        stream.share(self._trunk.inbox)
        stream.make_room(INBOX_LIMIT)
        self._trunk.add(stream)
        stream.send(wire.PeerMessage(ready=wire.Ready()))
        self._attached.add(stream.peer, stream)

    def close(self) -> None:
        """End the group: no session will join it, and none is left."""
        self._closing = True
        self.group.close()
        if self._attached.missing():
            self.finish()

    def on_fail(self) -> None:
        """Let every session of the group fail, and whoever waits for a peer look."""
        self._attached.wake()
        if self._error is not None and not self.finished:
            self.group.end(self._error)

    def _main(self) -> None:
        try:
            lower = range(self._network.config.index)
            for index in lower:
                self._dial(parties_of(self._network.config)[index])
            self._trunk.wait_until_ready(lower)
            self._attached.wait(self._network.config.connect_seconds, f"did not connect to {self.role} ({STEP})")
            self.group.run()
        except SessionFinished:
            pass
        except Exception as error:
            self.fail(public(error, self.role))
        self._end()

    def _dial(self, peer: Peer) -> None:
        network = self._network
        channel = connect(network.identity(), peer, network.config.connect_seconds, self.check)
        self._channels.append(channel)
        call = lambda channel: services.ComputePartyStub(channel).Exchange  # noqa: E731
        way = network.route(peer, call, wire.PeerMessage.FromString)
        stream = dialled(self, way, network.config.resume_seconds, PEER_BEAT, self._trunk.inbox)
        stream.dial(way, channel, wire.PeerMessage(steps=wire.Steps(group=self.id)))
        network.heartbeats.add(stream)
        self._trunk.add(stream)
        self._attached.add(peer.name, stream)

    def _end(self) -> None:
        """Tell the peers how the group ended, and wait until they know."""
        error = self.error
        if isinstance(error, MpcacheError) and not self.finished:
            self.group.end(error)
            for stream in list(self.streams):
                stream.close(wire.PeerMessage(failure=to_failure(error)))
        else:
            for stream in list(self.streams):
                stream.close()
            self.settle()
        self.end()
        self.finish_calls()
        for channel in self._channels:
            channel.close()
        for stream in list(self.streams):
            self._network.heartbeats.remove(stream)
        self._over(self)
