"""Extremes are those that transformers' hidden states, attentions and caches show; bounds hold them with a bit to spare."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.calibration import record
from models.calibration.certainty import beyond_flags
from models.calibration.choice import chosen, excesses
from models.calibration.extremes import Extremes, measure
from models.calibration.record import FILE, calibrated, find, make, read_record
from models.calibration.sequences import read_text, sequences
from models.checkpoint import CanonicalWeights, Checkpoint, TensorFiles, _family, load_checkpoint
from mpc.errors import CheckpointError, ConfigurationError
from protocols.bounds import RANGE_KINDS, RANGES, Bounds, largest
from protocols.ranges import checked_ranges, least_bound
from tests.models import random_checkpoints as checkpoints
from tests.tools import range_models


def extremes_of(**given: list[float]) -> Extremes:
    """Two layers and the head, 1.0 where nothing is given."""
    return Extremes({kind: given.get(kind, [1.0, 1.0, 1.0]) for kind in RANGE_KINDS})


def inputs_of(model: Any, ends: tuple[str, ...], ids: list[int]) -> dict[str, Tensor]:
    """What enters transformers' modules of these names, [T, D] each."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if name.endswith(ends):
            keep = lambda _, given, name=name: seen.__setitem__(name, given[0][0].detach())  # noqa: E731
            hooks.append(module.register_forward_pre_hook(keep))
    checkpoints.logits(model, ids)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["gpt2", "llama-grouped", "qwen2-window-from-layer-1"])
def test_extremes_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = checkpoints.save(name, tmp_path)
    family = _family(tmp_path)
    weights = CanonicalWeights(family, TensorFiles(tmp_path), torch.float32, balanced=False)
    ids = checkpoints.prompt(model, 13)
    found = measure(Checkpoint(tmp_path, family.architecture, weights), [ids[:5], ids])
    norms = ("ln_1", "ln_2", "ln_f") if name == "gpt2" else ("input_layernorm", "post_attention_layernorm", "model.norm")
    entering = list(inputs_of(model, norms, ids).values())
    if name == "gpt2":
        entering = [h - h.mean(-1, keepdim=True) for h in entering]
    rows = [float(h.norm(dim=-1).max()) for h in entering]
    wanted = [max(rows[0:3]), max(rows[2:5]), rows[4]]  # each layer's two norms and what it leaves behind, the final norm
    assert found.kinds["residual"] == pytest.approx(wanted, rel=1e-4)
    with torch.inference_mode():
        said = model(torch.tensor([ids]), output_attentions=True, use_cache=True)
    for layer, attention in enumerate(said.attentions):
        logs = attention[0].log()
        spread = logs.amax(-1) - logs.masked_fill(attention[0] == 0, torch.inf).amin(-1)
        assert found.kinds["score"][layer] == pytest.approx(float(spread.max()), rel=1e-3)
    if name != "qwen2-window-from-layer-1":
        values = [float(layer.values.abs().max()) for layer in said.past_key_values.layers]
        assert found.kinds["value"][:2] == pytest.approx(values, rel=1e-4)
    assert found.kinds["logits"][2] == pytest.approx(float(said.logits.abs().max()), rel=1e-4)
    parts = ("c_fc",) if name == "gpt2" else ("down_proj",)
    if name != "gpt2":
        products = [float(x.abs().max()) for x in inputs_of(model, parts, ids).values()]
        assert found.details["activation * up"][:2] == pytest.approx(products, rel=1e-4)
    provable = [1.5 * x for x in found.details["provable activation"]]  # rotations add up to a factor of sqrt(2)
    assert all(a <= p for a, p in zip(found.kinds["activation"], provable, strict=True))


def test_a_massive_activation_raises_the_bounds_where_it_is(tmp_path: Path) -> None:
    model = checkpoints.build("llama-grouped")
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] = 2900.0
        model.model.embed_tokens.weight[:7, :] *= 1e-3
    model.save_pretrained(tmp_path)
    found = measure(load_checkpoint(tmp_path), [[1, 7, 5]])
    options = chosen("masked", found)
    assert Bounds.parse("residual", options["residual"], 4, 18).at(0) == 13
    assert not excesses("masked", options, found)
    (excess,) = excesses("masked", {"residual": 11}, found)
    assert (excess.kind, excess.option) == ("residual", 13)
    assert "norms of rows of the residual stream reach 290" in excess.text
    assert "bound 2048: --suite-option residual=13" in excess.text


def test_bounds_have_a_bit_to_spare_and_stay_within_the_suite() -> None:
    found = extremes_of(residual=[3.0, 500.0, 70_000.0], score=[50.0, 157.0, 0.0], value=[240.0, 1.0, 0.0])
    options = chosen("masked", found)
    assert options == {"residual": "8 10 18", "score": "7 9", "value": "9 6"}
    for kind, values in found.kinds.items():
        bounds = Bounds.parse(kind, options.get(kind, RANGES[kind].usual), RANGES[kind].low, RANGES[kind].high)
        assert all(2 * x < largest(kind, bounds.at(n)) for n, x in enumerate(values) if x < 70_000)
    (excess,) = excesses("masked", {**options, "score": 7}, found)
    assert excess.text == "spreads of a row of attention scores reach 157 in layer 1, bound 112: --suite-option score=9"
    beyond = extremes_of(residual=[1.0, 1.0, 300_000.0])
    (excess,) = excesses("masked", chosen("masked", beyond), beyond)
    assert excess.option is None
    assert "3e+05 in the head, bound 262144: more than the suite can hold" in excess.text
    assert chosen("masked", extremes_of()) == {"residual": 8}
    assert [least_bound("score", x) for x in (100.0, 112.0, 223.0)] == [7, 8, 8]


def test_the_built_in_text_is_varied_and_begins_with_the_first_token(tmp_path: Path) -> None:
    checkpoints.save("gpt2", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    spread = sequences(checkpoint, read_text(None, checkpoint))  # no tokenizer
    assert len(spread) > 2
    assert all(ids[0] == 1 and len(ids) <= 64 for ids in spread)
    checkpoints.byte_tokenizer(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    texts = sequences(checkpoint, read_text(None, checkpoint))
    assert all(ids[0] == 1 and max(ids) < 97 for ids in texts)
    assert len({token for ids in texts for token in ids}) > 60
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(ConfigurationError, match="is empty"):
        read_text(empty, checkpoint)


def test_a_calibration_without_a_tokenizer_is_made_again_with_one(tmp_path: Path) -> None:
    """Ids that no text has are no text: said so, kept as long as there is nothing better, and no text of the user's."""
    checkpoints.save("llama-grouped", tmp_path)
    first = calibrated(tmp_path)
    assert (first.state, first.text) == ("made", False)
    assert (calibrated(tmp_path).state, calibrated(tmp_path).text) == ("found", False)
    given = tmp_path / "given.txt"
    given.write_text("a text")
    with pytest.raises(CheckpointError, match=r"no tokenizer.json there; copy"):
        make(tmp_path, given)
    checkpoints.byte_tokenizer(tmp_path)
    again = calibrated(tmp_path)
    assert (again.state, again.text) == ("stale", True)
    assert again.extremes.tokens != first.extremes.tokens
    assert (calibrated(tmp_path).state, calibrated(tmp_path).text) == ("found", True)


def test_the_file_is_found_as_long_as_it_fits(tmp_path: Path) -> None:
    checkpoints.save("llama-grouped", tmp_path)
    architecture = load_checkpoint(tmp_path).architecture
    assert find(tmp_path, architecture) is None
    first = calibrated(tmp_path)
    assert (first.state, first.file) == ("made", tmp_path / FILE)
    written = json.loads((tmp_path / FILE).read_text())
    assert written["format"] == 1
    assert set(written["suites"]) == {"masked", "crypten"}
    assert set(written["extremes"]) == set(RANGE_KINDS)
    again = find(tmp_path, architecture)
    assert again is not None
    assert (again.state, again.suites, again.extremes) == ("found", first.suites, first.extremes)
    weights = tmp_path / "model.safetensors"
    os.utime(weights, ns=(1, 1))  # another time, the same content
    assert find(tmp_path, architecture) is not None
    tensors = load_file(weights)
    tensors["model.norm.weight"] *= 2
    save_file(tensors, weights)
    assert find(tmp_path, architecture) is None
    assert calibrated(tmp_path).state == "stale"
    assert not list(tmp_path.glob(".mpcache-*"))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 2}', '{"suites": {"masked": {"residual": 99}}}', "\x00" * 10, "[" * 100_000]
)
def test_a_file_that_is_none_is_none(content: str, tmp_path: Path) -> None:
    checkpoints.save("llama-grouped", tmp_path)
    (tmp_path / FILE).write_text(content)
    assert read_record(tmp_path) is None


def test_a_folder_that_cannot_be_written_keeps_it_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save("llama-grouped", tmp_path)

    def refused(*args: object, **options: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    found = make(tmp_path)
    assert found.file is None
    assert found.suites["masked"]["residual"] == 8
    assert not (tmp_path / FILE).exists()


def test_shipped_models_have_theirs() -> None:
    import models.recall

    for name in ("gpt2", "llama", "gpt2_questions", "gpt2_questions_long"):
        folder = Path(models.recall.__file__).parent / name
        stored = read_record(folder)
        assert stored is not None
        assert stored.model_digest == record.model_digest(folder)


@pytest.mark.parametrize(
    "suites",
    [
        [],
        {"masked": 3},
        {"plain": {"score": 8}},
        {"other": {}},
        {"masked": {"residual": True}},
        {"masked": {"residual": 1.5}},
        {"masked": {"residual": "19"}},
        {"masked": {"device": "cpu"}},
        {"masked": {"score": "8*0"}},
    ],
)
def test_bounds_of_others_are_checked(suites: object) -> None:
    with pytest.raises(ConfigurationError, match="somebody"):
        checked_ranges(suites, "somebody")


def test_weights_whose_values_a_flag_could_miss_are_found() -> None:
    """By rows of the token table, and by what no prompt can exceed; a calibration's own bounds leave nothing unseen."""
    sizes = {
        "table": (70000.0, "residual=17"),
        "gate": (2.0**20, "no option"),
        "head": (6000.0, "logits=11"),
        "": (1.0, None),
    }
    for where, (size, remedy) in sizes.items():
        model = range_models.gated("llama", 0)
        with torch.no_grad():
            if where == "table":
                model.model.embed_tokens.weight[3, 1] = size
            if where == "gate":
                model.model.layers[1].mlp.gate_proj.weight[2] = size
            if where == "head":
                model.lm_head.weight[4] *= size / provable(model.lm_head.weight[4] * model.model.norm.weight)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            checkpoint = load_checkpoint(folder)
            text = beyond_flags(checkpoint, {})
            assert (text is None) if remedy is None else (text is not None and remedy in text)
            if where in ("table", "head"):
                chosen_options = make(Path(folder), write=False).suites["masked"]
                assert beyond_flags(checkpoint, chosen_options) is None


def provable(column: torch.Tensor) -> float:
    return float(column.norm()) * column.numel() ** 0.5
