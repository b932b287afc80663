"""Reaching a Ray cluster, or starting one for this run; Ray itself is imported here alone, and only when it is needed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import grpc

from launch.cluster.settings import AUTO, LOCAL
from launch.local import signals
from mpc.errors import ConfigurationError, EnvironmentProblem

ANSWER_SECONDS = 5.0
OBJECT_STORE_BYTES = 80_000_000  # the least that Ray takes: no data goes through it


def import_ray() -> ModuleType:
    """Return Ray. Raises `EnvironmentProblem` that names the extra where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of what runs here
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # what a user wants, `nice` says
    try:
        import ray
    except ImportError:
        raise EnvironmentProblem("Ray is not installed: pip install 'mpcache[ray]'") from None
    module: ModuleType = ray
    return module


@contextmanager
def connected(address: str, cpus: float) -> Iterator[ModuleType]:
    """Give Ray, connected to the cluster at `address`, which has `cpus` cores at least; leave it again at the end.

    A local one is started for this run and ends with it. Raises `EnvironmentProblem` naming address and remedy where there
    is no cluster, `ConfigurationError` where it has too few cores.
    """
    ray = import_ray()
    common = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    scratch = tempfile.mkdtemp(prefix="mpcache-ray-") if address == LOCAL else None
    try:
        if scratch is not None:
            own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            _started(ray, LOCAL, {**common, **own, "address": LOCAL, "_temp_dir": scratch})
        else:
            check_that_it_answers(address)
            _started(ray, address, {**common, "address": address})
        signals.install()  # Ray has its own way to leave at SIGTERM, which would not clean up here
        there = ray.cluster_resources().get("CPU", 0.0)
        if there < cpus:
            raise ConfigurationError(
                f"the dealers want {cpus:g} cores, the Ray cluster at {address} has {there:g}: give fewer 'workers' or "
                "'cpus', or add nodes with `ray start --address`"
            )
        yield ray
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _started(ray: ModuleType, address: str, options: dict[str, object]) -> None:
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _missing(address, " ".join(str(error).split())[:300]) from None


def _missing(address: str, reason: str) -> EnvironmentProblem:
    if address == LOCAL:
        return EnvironmentProblem(f"Ray cannot be started on this machine: {reason}")
    where = "on this node" if address == AUTO else f"at {address}"
    return EnvironmentProblem(
        f"no Ray cluster answers {where} ({reason}): start one with `ray start --head --port 6379`, run this command on one "
        "of its nodes, or write `address: local`"
    )


def check_that_it_answers(address: str) -> None:
    """Raise `EnvironmentProblem` unless something that speaks gRPC answers: Ray itself would wait for minutes, and then end
    this process."""
    if address == AUTO or os.environ.get("RAY_USE_TLS") == "1":
        return
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise _missing(address, f"nothing in {ANSWER_SECONDS:g} s") from None
