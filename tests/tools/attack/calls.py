"""Single calls to a server with an identity of a deployment, as no stock role would make them."""

from __future__ import annotations

import grpc

from parties.identity.certificates import Identity, check
from parties.transport.connection import connect
from parties.wire import wire_pb2 as wire
from parties.wire import wire_pb2_grpc as services
from parties.wire.error_codec import from_rpc
from parties.wire.manifest import new_id
from tests.parties.deployment import Deployment


def describe(deployment: Deployment, name: str, server: str) -> wire.Description:
    """What a party says of itself to `name`. Raises the typed error of a refusal."""
    identity = check(deployment.certificates, name)
    with connect(identity, deployment.peer(server), 5) as channel:
        try:
            return services.ComputePartyStub(channel).Describe(wire.DescribeRequest(), timeout=10)
        except grpc.RpcError as error:
            raise from_rpc(error, server, "asking") from None


def join(deployment: Deployment, identity: Identity, server: str) -> None:
    """Ask party or dealer to take `identity` into a session. Raises the typed error of a refusal."""
    with connect(identity, deployment.peer(server), 5) as channel:
        try:
            if server == "dealer":
                opening = wire.TapeRequest(open=wire.TapeOpen(session=new_id()))
                list(services.DealerStub(channel).Tape(iter([opening]), timeout=10))
            else:
                hello = wire.PeerMessage(hello=wire.Hello(session=new_id(), name=identity.name))
                list(services.ComputePartyStub(channel).Exchange(iter([hello]), timeout=10))
        except grpc.RpcError as error:
            raise from_rpc(error, server, "joining") from None
