"""Policies' text form, and what is refused by name before anything runs: settings, models, lengths."""

from __future__ import annotations

import re

import pytest

from models.costs.estimation import Tracer
from models.costs.tracing import Setting
from models.policies import parse
from models.policies.changed import Changed
from models.policies.holding import Holding
from models.policies.registry import WRAPPERS
from models.shapes import SHAPES
from mpc.errors import ConfigurationError
from tests.models.policies.policy_cases import tiny
from tests.models.policies.test_policies import TEXTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lucky", "unknown cache policy 'lucky'; known: full, mpcache"),
        (
            "mpcache:preset=clusters,dynamik=0.1",
            "policy mpcache has no setting 'dynamik'; known: dynamic, fine, coarse",
        ),
        ("mpcache:preset=clusters,dynamic=0", "policy mpcache: dynamic = 0.0 must be a share above 0 and up to 1"),
        ("mpcache:preset=clusters,static=1.5", "policy mpcache: static = 1.5 must be a share above 0 and up to 1"),
        ("mpcache:preset=clusters,dynamic=many", "policy mpcache: dynamic = 'many' must be a number"),
        ("mpcache:preset=clusters,fine=2.5", "policy mpcache: fine = '2.5' must be a whole number"),
        ("mpcache:preset=clusters,fine=16,fine=16", "policy mpcache: write 'fine=value' once"),
        ("mpcache:preset=clusters,fine=12,coarse=32", "clusters do not nest: coarse = 32 must be a multiple of fine = 12"),
        (
            "mpcache:preset=clusters,fine=16,coarse=16",
            "clusters do not nest: coarse = 16 must be a multiple of fine = 16 and larger",
        ),
        ("mpcache:preset=clusters,coarse=16", "policy mpcache: coarse = 16 needs fine, which must divide it"),
        ("mpcache:preset=clusters,levels=3", "policy mpcache: levels = 3 must be 1 or 2, or 0"),
        ("mpcache:preset=clusters,alpha=2", "policy mpcache: alpha = 2.0 must be between 0 and 1"),
        (
            "mpcache:preset=clusters,gathering=all",
            "policy mpcache: gathering = 'all' must be one of auto, products, rows, scores",
        ),
        ("mpcache:preset=clusters,gathering=scores,levels=2", "policy mpcache: gathering = 'scores' needs levels=1"),
        (
            "mpcache:preset=clusters,per_head=true",
            "policy mpcache: per_head = true needs levels=1 and gathering=scores, got levels = 1, gathering = 'products'",
        ),
        ("mpcache:fine=4,coarse=8,per_head=true", "needs levels=1 and gathering=scores, got levels = 2, gathering = 'auto'"),
        ("mpcache:per_head=2", "policy mpcache: per_head = '2' must be true or false"),
        (
            "mpcache:preset=thesis",
            "policy mpcache: preset = 'thesis' must be one of few-queries, each-head, clusters, paper, named once",
        ),
        (
            "mpcache:preset=clusters,observed=1.5",
            "policy mpcache: observed = 1.5 must be a number of queries, or a share of them below 1",
        ),
        (
            "mpcache:preset=clusters,observed=0",
            "policy mpcache: observed = 0.0 must be a number of queries, or a share of them below 1",
        ),
        ("h2o:preset=paper", "policy h2o has no setting 'preset'; known: budget, recent"),
        ("mpcache:preset=clusters,linear=perhaps", "policy mpcache: linear = 'perhaps' must be true or false"),
        ("h2o:budget=-1", "policy h2o: budget = -1.0 must be a share above 0 and up to 1"),
        ("snapkv:kernel=4", "policy snapkv: kernel = 4 must be odd"),
        ("quest:page=0", "policy quest: page = 0 must be a whole number, 1 or more"),
        (
            "full@0-1",
            "policy 'full@0-1' names no policy for the other layers: its list is incomplete; end it with one, such",
        ),
        ("h2o@0;snapkv@1-3", "end it with one, such as h2o@0;snapkv@1-3;full"),
        ("full@", "'full@': a policy for some layers is written as policy@first-last"),
        ("lag|full", "policy lag: 'full' is no system of axes, of which lag changes one; use h2o or tova inside, or leave"),
        ("lag|snapkv", "so nothing can go while decoding; use h2o or tova inside, or leave out lag"),
        ("demote|quest", "demote changes one; use h2o, snapkv or tova inside, or leave out demote"),
        ("full@x;mpcache", "'full@x': a policy for some layers is written as policy@first-last"),
        ("chunked:tokens=1|full", "policy chunked: tokens = 1 must be a whole number, 2 or more"),
        ("twice|full", "unknown wrapper of cache policies 'twice'; known: shared, chunked, batches, lag"),
        ("batches:tokens=1|h2o", "policy batches: tokens = 1 must be a whole number, 2 or more"),
        ("batches:keep=-1|h2o", "policy batches: keep = -1 must be a whole number, 0 or more"),
        ("batches:ahead=few|h2o", "policy batches: ahead = 'few' must be a whole number"),
        ("batches:size=64|h2o", "policy batches has no setting 'size'; known: tokens, keep, ahead"),
        (
            "batches|quest",
            "policy batches: 'quest' drops no token of a prompt, so there is nothing to do between batches; use one of "
            "cake, compresskv, d2o, elastic, ems, epicache, h2o, kvmerger, lazyeviction, mpcache, snapkv, streaming-llm, "
            "tova inside, or chunked in place of batches",
        ),
        ("batches|full@0;dynamic-top-k", "policy batches: 'full@0;dynamic-top-k' drops no token of a prompt"),
        ("batches|chunked|h2o", "policy batches: chunked inside cuts the prompt into batches, too; leave out one of them"),
        ("chunked|shared|batches|h2o", "policy chunked: batches inside cuts the prompt into batches, too"),
        ("lag:every=0|h2o", "policy lag: every = 0 must be a whole number, 1 or more"),
        (
            "lag|mpcache",
            "policy lag: 'mpcache' reads some of what stays, by clusters or places that lag would change; use h2o or",
        ),
        ("clusters|h2o", "policy clusters: 'h2o' moves rows while decoding or holds them in segments"),
        ("clusters|mpcache", "policy clusters: 'mpcache' reads some of what stays"),
        (
            "clusters:fine=4,coarse=6|snapkv",
            "policy clusters: clusters do not nest: coarse = 6 must be a multiple of fine = 4",
        ),
        ("lag|full@0;h2o", "policy lag: 'full@0;h2o' is no system of axes"),
        ("lag|lag|h2o", "policy lag: 'lag:every=32|h2o' is changed so already; leave out one of them"),
        ("lag|layers:weights=1|lag|h2o", "policy lag: 'layers:weights=1|lag:every=32|h2o' is changed so already"),
        ("layers:weights=1 2|quest", "policy layers: 'quest' is no system of axes, of which layers changes one"),
        ("layers|h2o", "policy layers: weights = '' must name numbers, such as 4 2 1*10, one of them above 0"),
        ("layers:weights=0*3|h2o", "policy layers: weights = '0*3' must name numbers"),
        ("layers:weights=1 -2|h2o", "policy layers: weights has '-2', which must be a number, 0 or more, or number*count"),
        ("layers:weights=1*2.5|h2o", "policy layers: weights has '1*2.5', which must be a number"),
        ("layers:weights=nan|h2o", "policy layers: weights has 'nan', which must be a number"),
        ("layers:weights=1*1000000|h2o", "policy layers: weights has '1*1000000', which must be a number"),
        ("lag|snapkv", "policy lag: the scores of 'snapkv' come from the prompt's last queries alone"),
        ("cake:window=1", "policy cake: window = 1 must be a whole number, 2 or more"),
        ("cake:window=65", "policy cake: window = 65 must be at most 64, which rankings hold"),
        ("cake:gamma=2.5", "policy cake: gamma = '2.5' must be a whole number"),
        ("cake:gamma=1001", "policy cake: gamma = 1001 must be at most 1000"),
        ("cake:kernel=4", "policy cake: kernel = 4 must be odd"),
        ("compresskv:heads=3", "policy compresskv: heads has '3', which must be layer.head, such as 0.1 3.7"),
        ("compresskv:heads=0.1 0.1", "policy compresskv: heads names 0.1 twice; it would count twice"),
        ("compresskv:heads=0.-1", "policy compresskv: heads has '0.-1', which must be layer.head"),
        ("lazyeviction:every=0", "policy lazyeviction: every = 0 must be a whole number, 1 or more"),
        ("lazyeviction:alpha=0", "policy lazyeviction: alpha = 0.0 must be a share above 0 and up to 1"),
        ("lag|compresskv", "policy lag: the scores of 'compresskv' come from the prompt's last queries alone"),
        ("x" * 1500, "a policy's text has at most 1000 characters, got 1500"),
    ],
)
def test_bad_settings_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "tokens", "message"),
    [
        (
            "mpcache:preset=clusters,dynamic=0.1",
            100,
            "dynamic = 0.1 attends to 10 of 100 tokens, fewer than sinks = 4 and window = 12",
        ),
        (
            "mpcache:preset=clusters,static=0.1",
            100,
            "static = 0.1 keeps 10 of 100 tokens, which does not hold sinks = 4, window = 12",
        ),
        (
            "mpcache:preset=clusters,sharing=3",
            1000,
            "sharing = 3 behind the first apart = 2 layers needs 5 layers, the model has 4",
        ),
        ("streaming-llm:budget=0.01", 300, "budget = 0.01 keeps 3 of 300 tokens, which does not hold sinks = 4"),
        ("snapkv:budget=0.1", 300, "budget = 0.1 keeps 30 of 300 tokens, which does not hold window = 32"),
        ("h2o:budget=0.01", 100, "keeps 1 of 100 tokens, which does not hold a heavy hitter and a recent token"),
        ("shared:layers=4|quest", 100, "layers = 4 behind the first apart = 2 needs 6 layers, the model has 4"),
        (
            "shared:layers=2|mpcache:scoring=authors,sharing=1",
            100,
            "policy shared: layers of 'mpcache:sharing=1,scoring=authors' keep different numbers of tokens",
        ),
        ("batches:tokens=512|h2o", 300, "tokens = 512 is more than the 300 tokens of the prompt; lower it, or leave out"),
        (
            "batches:tokens=32|snapkv:budget=0.3",
            300,
            "tokens = 32 does not hold window = 32 and a voted token of 'snapkv:budget=0.3'; raise tokens to 33 or more",
        ),
        (
            "batches:tokens=16,ahead=0|mpcache:observed=9",
            300,
            "does not hold sinks = 4, window = 12 and one more token of 'mpcache:observed=9'; raise tokens to 17",
        ),
        (
            "batches:tokens=40,ahead=0|mpcache:observed=48",
            300,
            "tokens = 40 does not hold observed = 48 queries of 'mpcache:observed=48'; raise tokens to 48 or more",
        ),
        (
            "batches:tokens=128,keep=100|h2o:budget=0.5",
            300,
            "keep = 100 between batches is less than the 150 of 300 tokens that 'h2o:budget=0.5' keeps after the prompt; "
            "raise keep to 150",
        ),
        ("batches:tokens=64|snapkv:budget=0.1", 300, "budget = 0.1 keeps 30 of 300 tokens, which does not hold window = 32"),
        ("full@2-4;mpcache", 1000, "policy full@2-4: the model has layers 0 to 3"),
    ],
)
def test_what_does_not_fit_model_or_prompt_is_named(text: str, tokens: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        parse(text, plaintext=True).check(tiny(), tokens)


@pytest.mark.parametrize("text", [t for t in TEXTS if t != "full"])
def test_sliding_windows_are_refused(text: str) -> None:
    a = tiny().model_copy(update={"windows": (8, 8, 8, 8)})
    with pytest.raises(ConfigurationError, match="does not work on layers with a sliding window"):
        parse(text).check(a, 40)


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "full@0-1;mpcache:preset=clusters,dynamic=0.2,sharing=1",
        "shared:layers=2,apart=2|quest:budget=0.2",
        "chunked:tokens=16|shared:layers=3,apart=0|full@1;quest",
        "batches:tokens=64,keep=128,ahead=8|shared:layers=2,apart=0|full@1;mpcache:preset=clusters,sharing=1",
        "batches:tokens=256|h2o",
        "shared:layers=2,apart=2|batches:tokens=128|mpcache:preset=clusters,sharing=1",
    ],
)
def test_a_policys_text_makes_the_same_policy(text: str) -> None:
    policy = parse(text)
    assert parse(policy.spec) == policy
    assert parse(policy.spec).spec == policy.spec


@pytest.mark.parametrize("wrapper", [kind for kind in WRAPPERS.values() if issubclass(kind, Changed | Holding)])
def test_systems_that_remedies_name_can_be_inside(wrapper: type[Changed | Holding]) -> None:
    settings = ":weights=1 2" if wrapper.name == "layers" else ""
    names = re.findall(r"\b(?:full|h2o|snapkv|tova|cake|compresskv)\b", wrapper.usual)
    assert len(names) >= 2
    assert [parse(f"{wrapper.name}{settings}|{name}").inner.name for name in names] == names  # type: ignore[attr-defined]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_mpcache_on_few_layers(layers: int) -> None:
    """Where tokens attend to all that stays, no clusters are shared, and no group of layers needs to be whole."""
    few = SHAPES["tiny"].model_copy(update={"layers": layers})
    for text in ("mpcache", "mpcache:sharing=4,apart=0"):
        parse(text).check(few, 60)
        for cached, tokens in ((0, 60), (60, 1)):
            quick, whole = (Tracer(few, Setting("masked", 2, text), every).step(cached, tokens) for every in (False, True))
            assert quick.costs == whole.costs
    with pytest.raises(ConfigurationError, match=f"needs 4 layers, the model has {layers}"):
        parse("mpcache:dynamic=0.5").check(few, 100)
    assert parse("mpcache").spec == "mpcache"
