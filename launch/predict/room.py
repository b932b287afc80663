"""Whether this machine has the memory that a session's processes will take, said before any of them starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from launch.local.memory import available_memory
from launch.terminal.console import byte_count, err
from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.costs.cached import cache_bytes
from models.costs.estimation import Tracer, file_bytes
from models.costs.memory import START, Held, Memory, memory_of
from models.costs.tracing import Setting, trace_load
from models.encoder_architecture import EncoderArchitecture
from models.encoding import MOST_TEXTS, padded_length
from models.learned import with_learned
from models.policies import parse
from mpc.errors import EnvironmentProblem
from parties.config.role_config import split_address
from parties.names import is_loopback
from protocols.registry import SuiteSpec

EXACT = 0.15  # of a prediction, either way
USUAL_PROMPT = 512  # tokens that a server is looked at with before anybody asks


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


def check_texts(architecture: EncoderArchitecture, spec: SuiteSpec, parties: int, tokens: Sequence[int]) -> str:
    """Predict and check a session of an encoder whose roles all run here. tokens: of each text; see `check_room`."""
    padded = tuple(padded_length(count, architecture.positions) for count in tokens)[:MOST_TEXTS]
    setting = Setting(spec.name, parties, options=spec.options, decoding=architecture.usual_output, texts=padded)
    remedy = "give fewer or shorter texts, or let the roles run on hosts of their own (docs/hosts.md)"
    return check_room(session_memory(architecture, setting, sum(padded), 1), parties, remedy)


def warn_of_running(
    architecture: AnyArchitecture,
    setting: Setting,
    addresses: Sequence[str],
    warn: Callable[[str], None] = lambda text: err.print(text, style="yellow"),
) -> int | None:
    """Warn where roles that run on this machine already have no room for a usual prompt, of `USUAL_PROMPT` tokens or as many
    as the model has positions for. Returns the bytes that they would take beyond those of their start; None where a party
    runs elsewhere, about whose memory nobody here can tell."""
    if not all(is_loopback(split_address(address)[0]) for address in addresses):
        return None
    prompt = min(USUAL_PROMPT, architecture.positions)
    memory = session_memory(architecture, setting, prompt, 1)
    needed = memory.here(setting.parties) - memory.peak("client") - (setting.parties + 1) * START
    free = available_memory()
    if free is not None and (1 - EXACT) * needed > free:
        warn(
            f"parties and dealer run on this machine: a prompt of {prompt} tokens makes them take some "
            f"{byte_count(needed)} of memory, {byte_count(free)} are free. A process may be killed: end other programs, ask "
            "short prompts only, or let the roles run on hosts of their own (docs/hosts.md)"
        )
    return needed
