"""What a policy costs once, at the prompt, beyond the full cache: two prompts predicted on tensors without content.

What it takes to know the attention mass of tokens and the policy's own stages in all layers; of a prompt in several batches
also what tokens that are dropped save in it, which is negative where it is more than the policy costs. Bytes and rounds are
what parties count.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from models.architecture import Architecture
from models.costs.estimation import Tracer
from models.costs.tracing import Setting
from mpc.ledger import Cost


def combined(*terms: tuple[float, Cost]) -> Cost:
    """Return the sum of factors times costs."""
    out = Cost()
    for field in fields(Cost):
        value = sum(factor * getattr(cost, field.name) for factor, cost in terms)
        setattr(out, field.name, value if field.name == "seconds_waiting" else round(value))
    return out


def prompt_costs(architecture: Architecture, setting: Setting, prompt: int) -> Cost:
    """Return the costs of a prompt up to its first token."""
    with torch.inference_mode():
        found = Tracer(architecture, setting).step(0, prompt).costs
    return Cost(**{name: round(found.total(name)) for name in ("rounds", "bytes_sent", "offline_bytes")})


def after_prompt(architecture: Architecture, setting: Setting, prompt: int, full: Cost | None = None) -> Cost:
    """Return the costs of a prompt beyond those with the full cache, which are `full` where they are known already."""
    without = full_costs(architecture, setting, prompt) if full is None else full
    return combined((1, prompt_costs(architecture, setting, prompt)), (-1, without))


def full_costs(architecture: Architecture, setting: Setting, prompt: int) -> Cost:
    """Return the costs of the same prompt with the full cache."""
    return prompt_costs(architecture, replace(setting, policy="full"), prompt)
