"""Which way a mixture of experts is computed with `experts=auto`: by what each is predicted to cost for the prompt.

One mixture layer is run on shape tensors in either way, as a session runs it; `protocols.masked.forms.choose` takes the one
that is done soonest, by rounds, bytes and work, or as the suite's option `prefer` says. Public sizes decide. What is chosen
is written into the manifest, as if it had been said.
"""

from __future__ import annotations

from functools import lru_cache
from typing import cast

from models.architecture import Architecture
from models.costs.products import Products
from models.costs.tracing import Setting
from models.experts import Mixture
from models.policies import parse
from protocols.expert_ways import AUTO, DENSE, ExpertsWay
from protocols.masked.forms import Form, choose
from protocols.options import MaskedOptions, OptionValue
from protocols.registry import SuiteSpec
from protocols.suite import Suite

CAPACITY = "capacity:2"  # an expert takes twice the tokens that it has on average
OPTION = "experts"
PRODUCTS = 1e9  # ring multiply-adds a second of one core, about
WORK, DEALING = 5e-9, 1.5e-8  # seconds a dealt byte takes a party and the dealer, about


@lru_cache(256)
def ways(
    model: str, suite: str, options: tuple[tuple[str, OptionValue], ...], parties: int, tokens: int
) -> tuple[Form, ...]:
    """Return what each way costs in one mixture layer for so many tokens. model: an architecture's JSON. options: the
    suite's, but for the way."""
    a = Architecture.from_json(model)
    assert a.experts is not None
    names = [DENSE]
    if ExpertsWay.parse(CAPACITY).places(tokens, a.experts.chosen, a.experts.count) is not None:
        names.append(CAPACITY)
    return tuple(_form(a, Setting(suite, parties, options={**dict(options), OPTION: name}), tokens) for name in names)


def _form(a: Architecture, setting: Setting, tokens: int) -> Form:
    suite, _ = setting.make()
    layer = next(n for n in range(a.layers) if a.mixture(n) is not None)
    products = Products(suite)
    counted = cast(Suite, products)

    async def run() -> None:
        shapes = a.weight_shapes()
        own = [key for key in shapes if key.startswith(f"layers.{layer}.mlp.")]
        mixture = Mixture(counted, a, {key: await suite.weight(key, shapes[key], None) for key in own})
        suite.ledger.costs.clear()
        h = suite.input((tokens, a.width), None, suite.fraction_bits)
        places = mixture.places(tokens)
        if places is not None:
            await mixture.dispatched(h, layer, places)
        else:
            await mixture.leaving(await counted.norm_linear(h, a.stream_norm, mixture.entering(layer)), layer, h)

    suite.begin(a.layers + 1)
    suite.at(layer)
    suite.run(run())
    cost, made = suite.ledger.total(), sum(products.counts.values()) / PRODUCTS
    dealt = cost.offline_bytes
    work, dealing = made + WORK * dealt, made / 2 + DEALING * dealt
    return Form(str(setting.options[OPTION]), cost.rounds, cost.bytes_sent, dealt, work, dealing)


def with_way(spec: SuiteSpec, architecture: Architecture, prompt: int, policy: str, parties: int) -> SuiteSpec:
    """Return the suite with the way to compute mixtures of experts that such a prompt asks for, where `spec` leaves it open.
    Where it does not say any, it is the exact one: a capacity may drop what an expert would have said."""
    if architecture.experts is None or spec.options.get(OPTION) != AUTO:
        return spec
    tokens = max(parse(policy).prompt_batches(prompt))
    others = tuple((key, value) for key, value in spec.options.items() if key != OPTION)
    forms = ways(architecture.to_json(), spec.name, others, parties, tokens)
    prefer = spec.settings.prefer if isinstance(spec.settings, MaskedOptions) else "auto"
    return SuiteSpec(spec.name, spec.fraction_bits, {**spec.options, OPTION: choose(forms, prefer)})
