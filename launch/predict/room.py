"""Whether this machine has the memory that a session's processes will take, said before any of them starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from launch.local.memory import available_memory, listening_memory
from launch.terminal.console import Settings, byte_count, err
from models.architecture import Architecture
from models.architectures import AnyArchitecture
from models.costs.cached import cache_bytes
from models.costs.estimation import Tracer, file_bytes, layer_elements
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
Warn = Callable[[str], None]
USUAL_PROMPT = 512  # tokens that a server is looked at with before anybody asks


def _in_yellow(text: str) -> None:
    err.print(text, style="yellow", soft_wrap=True)


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
    of_checkpoint = file_bytes(architecture), setting.suite, layer_elements(architecture)
    return memory_of(Held(weights, (cached, cached), working, *of_checkpoint))


def check_room(memory: Memory, parties: int, remedy: str, warn: Warn = _in_yellow) -> str:
    """Say what the processes of all roles take on this machine at the same time; as `judge` where that is not free."""
    needed = memory.here(parties)
    roles = f"{parties} parties of {byte_count(memory.peak('party'))}, dealer {byte_count(memory.peak('dealer'))}"
    parts = f"{byte_count(needed)} of memory ({roles}, client {byte_count(memory.peak('client'))})"
    judge(needed, f"the processes need {parts}", remedy, warn)
    return parts


def judge(needed: float, said: str, remedy: str, warn: Warn = _in_yellow) -> None:
    """Compare bytes that will be taken, and are `said` to be, with those that are free. Raises `EnvironmentProblem` with the
    remedy where they do not fit even if they are predicted too high, unless `mpcache --yes` was said; warns then, and where
    they might not."""
    free = available_memory()
    if free is None:
        return
    text = f"{said}, {byte_count(free)} are free"
    if (1 - EXACT) * needed > free and not Settings.yes:
        raise EnvironmentProblem(f"{text}; end other programs, {remedy}, or go on all the same: `mpcache --yes ...`")
    if (1 + EXACT) * needed > free:
        warn(f"{text}: if a process is killed, end other programs, {remedy}")


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


def check_running(
    architecture: AnyArchitecture,
    setting: Setting,
    addresses: Sequence[str],
    lengths: tuple[int, int],
    warn: Warn = _in_yellow,
) -> float | None:
    """Check that roles which run on this machine already have room for a prompt, as `judge` does. lengths: of it, and of new
    tokens. Returns the bytes that they will take beyond what they hold; None where a party runs elsewhere, about whose
    memory nobody here can tell."""
    places = [split_address(address) for address in addresses]
    if not all(is_loopback(host) for host, _ in places):
        return None
    memory, (prompt, new) = session_memory(architecture, setting, *lengths), lengths
    held = [max(START, count) for count in listening_memory([port for _, port in places]).values()]
    held += [START] * (setting.parties + 1 - len(held))
    needed = max(0.0, memory.here(setting.parties) - memory.peak("client") - sum(held))
    judge(
        needed,
        f"parties and dealer run on this machine: a prompt of {prompt} tokens and {new} new ones make them take "
        f"{byte_count(needed)} of memory more",
        "serve shorter prompts (--prompt-buckets, --default-max-tokens), or let the roles run on hosts of their own "
        "(docs/hosts.md)",
        warn,
    )
    return needed
