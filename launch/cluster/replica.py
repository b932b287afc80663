"""A whole deployment of one machine as an actor of a Ray cluster: all roles, and a gateway before them.

What goes through Ray, both ways, is JSON text of public settings, paths, names and states. Prompts and answers go over HTTP
from the router to the replica's gateway, which asks for the key that is in a file of both.
"""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from launch.cluster.reports import Report, reported
from launch.local.deployment import LocalDeployment, local_deployment
from mpc.errors import EnvironmentProblem


class ReplicaOrder(BaseModel):
    """What a replica is to serve. host: of who asks, since gateways of other machines cannot be reached; keys: file of the
    keys that requests need. scratch: folder for all that it writes, which whoever asks removes: Ray kills an
    actor's processes before they can."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    name: str
    parties: int
    keys: Path
    host: str
    scratch: Path


class DeploymentReplica:
    """The actor. Each call returns JSON: what was asked for, or `code` and `message` of an error."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._deployment: LocalDeployment | None = None

    def begin(self, order: str) -> str:
        """Start all roles, share the model, start the gateway. Reports node, pid and the gateway's address."""
        return reported(lambda: self._begin(ReplicaOrder.model_validate_json(order)))

    def check(self) -> str:
        """Report an error when one of its processes has ended."""
        return reported(self._check)

    def end(self) -> str:
        """End all processes."""
        return reported(self._end)

    def _begin(self, order: ReplicaOrder) -> Report:
        if (node := socket.gethostname()) != order.host:
            raise EnvironmentProblem(
                f"a replica was placed on node {node}, where nobody else can reach it, and its router is on {order.host}: "
                "use `address: local`, or a node with cores enough"
            )
        tempfile.tempdir = str(order.scratch)
        deployment = self._stack.enter_context(local_deployment(order.parties))
        deployment.share_model(order.model, order.name)
        self._deployment = deployment
        return {"node": node, "pid": os.getpid(), "address": deployment.gateway(order.model, order.keys)}

    def _check(self) -> Report:
        if self._deployment is not None:
            self._deployment.check()
        return {}

    def _end(self) -> Report:
        self._stack.close()
        return {}
