"""Whether this machine has the memory that a session's processes will take, said before any of them starts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from launch.local.memory import available_memory
from launch.terminal.console import byte_count, err
from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.costs.cached import cache_bytes
from models.costs.estimation import Tracer, file_bytes
from models.costs.memory import Held, Memory, memory_of
from models.costs.tracing import Setting, trace_load
from models.learned import with_learned
from models.policies import parse
from mpc.errors import EnvironmentProblem

EXACT = 0.15  # of a prediction, either way


def session_memory(architecture: AnyArchitecture, setting: Setting, prompt: int, new: int) -> Memory:
    """Return what every role of a session holds, as `models.costs.estimation.estimate` does, but for what a policy drops:
    only loading and the prompt are traced."""
    if isinstance(architecture, Architecture):
        architecture = with_learned(architecture, parse(setting.policy).weight_shapes(architecture))
    with torch.inference_mode():
        _, weights = trace_load(architecture, setting)
        step = Tracer(architecture, setting).step(0, prompt)
    cached = cache_bytes(architecture, setting.behind + prompt, new)
    working = (step.working, step.working)
    return memory_of(Held(weights, (cached, cached), working, file_bytes(architecture), setting.suite))


def check_room(
    memory: Memory, parties: int, remedy: str, warn: Callable[[str], None] = lambda text: err.print(text, style="yellow")
) -> str:
    """Say what the processes of all roles take on this machine at the same time. Raises `EnvironmentProblem` with the
    remedy when that is not free, even if it is predicted too high; warns where it might not be."""
    needed = memory.here(parties)
    roles = f"{parties} parties of {byte_count(memory.peak('party'))}, dealer {byte_count(memory.peak('dealer'))}"
    parts = f"{byte_count(needed)} of memory ({roles}, client {byte_count(memory.peak('client'))})"
    free = available_memory()
    if free is None:
        return parts
    if (1 - EXACT) * needed > free:
        raise EnvironmentProblem(f"the processes need {parts}, {byte_count(free)} are free; end other programs, {remedy}")
    if (1 + EXACT) * needed > free:
        warn(
            f"the processes need about {parts}, {byte_count(free)} are free: if one is killed, end other programs, {remedy}"
        )
    return parts


def check_session(architecture: AnyArchitecture, setting: Setting, prompt: int, new: int) -> str:
    """Predict and check a session whose roles all run here; see `check_room`."""
    remedy = (
        "shorten the prompt, let a policy work on it in batches (docs/choosing.md), or let the roles run on hosts of their "
        "own (docs/hosts.md)"
    )
    return check_room(session_memory(architecture, setting, prompt, new), setting.parties, remedy)
