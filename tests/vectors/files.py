"""Which vector pins down which source, and how files are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.vectors import cases_formats as formats
from tests.vectors.cases_crypten import crypten_files
from tests.vectors.cases_gather import gather_files
from tests.vectors.cases_lifted import lifted_files
from tests.vectors.cases_masked import masked_files
from tests.vectors.cases_merging import merging_files
from tests.vectors.cases_moved import moved_files
from tests.vectors.cases_outputs import output_files
from tests.vectors.cases_routing import routing_files
from tests.vectors.cases_softmax import softmax_files
from tests.vectors.recording import Case, record

FOLDER = Path(__file__).parent
LARGEST = 760_000  # bytes of all files; git packs them to half of that
REAL = 1e-9  # relative to the largest coefficient: a least-squares fit differs in the last bits between machines
Content = Callable[[], dict[str, Any]]

FORMATS: dict[str, tuple[Content, tuple[str, ...]]] = {
    "generator": (formats.generator, ("mpc/random.py", "mpc/generators.py")),
    "packing": (formats.packing, ("mpc/packing.py",)),
    "numbers": (formats.numbers, ("mpc/ring.py", "mpc/fixed_point.py")),
    "noise": (formats.noise, ("protocols/gumbel.py",)),
    "tape": (formats.tape, ("mpc/tape.py",)),
    "tape_file": (formats.tape_on_disk, ("parties/tapes/file.py", "parties/tapes/header.py")),
    "client_shares": (formats.client_shares, ("parties/wire/shares.py",)),
    "point_functions": (formats.point_functions, ("protocols/masked/dpf.py", "protocols/masked/dealing.py")),
    "coefficients": (formats.coefficients, ("protocols/masked/piecewise.py",)),
}

MASKED: dict[str, tuple[str, ...]] = {
    "opening": ("context.py", "shares.py"),
    "output": ("output.py",),
    "product": ("product.py",),
    "veiled": ("veiled.py",),
    "lifted": ("lifted.py",),
    "wide": ("wide.py", "mpc/wide.py"),
    "fixed_weight": ("product.py", "weights.py", "split_weight.py"),
    "look_up": ("tokens.py", "weights.py"),
    "gather": ("gather.py",),
    "truncation": ("truncation.py",),
    "floor": ("truncation.py", "comparison.py"),
    "released": ("output.py", "conversion.py", "ranges.py"),
    "sample": ("output.py", "ranking.py", "conversion.py", "protocols/gumbel.py"),
    "less_than_zero": ("comparison.py",),
    "one_hot": ("one_hot.py", "dpf.py", "zero_test.py", "idpf.py"),
    "signed_one_hot": ("signed_one_hot.py",),
    "digits": ("digits.py",),
    "selection_matrix": ("selection_matrix.py",),
    "piecewise": ("piecewise.py",),
    "activation": ("activation.py", "brackets.py", "curves.py", "opened_bits.py", "segments.py", "waves.py"),
    "power": ("power.py", "idpf.py"),
    "exponential": ("exponential.py", "powers_of_two.py"),
    "zero_words": ("zero_words.py",),
    "soft_cap": ("soft_cap.py",),
    "softmax": ("softmax.py", "histogram.py", "attention.py"),
    "norm": ("normalisation.py", "stream.py", "forms.py", "ranges.py"),
    "range_flags": ("ranges.py",),
    "routing": ("routing.py",),
    "top_k": ("top_k.py",),
    "threshold": ("threshold.py",),
    "ranking": ("ranking.py",),
    "argmax": ("ranking.py", "selection.py"),
    "shuffle": ("shuffle.py",),
    "compaction": ("compaction.py",),
    "partition": ("partitioning.py",),
    "scan": ("scan.py",),
}

CRYPTEN: dict[str, tuple[str, ...]] = {
    "crypten_product": ("arithmetic.py", "masked_factors.py"),
    "crypten_truncation": ("arithmetic.py",),
    "crypten_released": ("output.py", "linear.py"),
    "crypten_sample": ("linear.py", "protocols/gumbel.py"),
    "crypten_zero_sharing": ("protocols/crypten/binding/session.py",),
    "crypten_comparison": ("comparison.py",),
    "crypten_select": ("comparison.py",),
    "crypten_range_flags": ("ranges.py", "masked_factors.py"),
    "crypten_reciprocal": ("reciprocal.py",),
    "crypten_softmax": ("softmax.py", "reciprocal.py", "maximum.py"),
    "crypten_activation": ("activation.py",),
    "crypten_norm": ("normalisation.py", "reciprocal.py"),
    "crypten_maximum": ("maximum.py",),
    "crypten_selection": ("selection.py",),
}

NO_PROTOCOL = {
    "masked": {
        "__init__.py": "no code",
        "append_buffer.py": "memory of cached rows",
        "matrix_weight.py": "how weights lie on a device, and in pieces; products as elsewhere",
        "held.py": "openings in small rings, and products",
        "packed_rows.py": "memory of cached rows",
        "arithmetic.py": "conversions and products",
        "cache.py": "openings in the full ring, and products",
        "elementwise.py": "rounds of the gates above",
        "linear.py": "products with fixed weights",
        "magnitudes.py": "public bounds",
        "marking.py": "a choice of two of the gates above",
        "merging.py": "openings, products and rounds of the gates above",
        "mixture.py": "routing, openings and products",
        "public_tables.py": "a hash of public tables",
        "rows.py": "public positions",
        "selected_attention.py": "attention of the gates above",
        "suite.py": "passes on to the modules beside it",
        "values.py": "values of the suite",
    },
    "crypten": {
        "__init__.py": "no code",
        "own.py": "CrypTen's own functions, whose tuples only are ours",
        "suite.py": "the suite: its rounds are those of the gates above",
        "value.py": "values of the suite",
    },
}


def sources() -> dict[str, list[str]]:
    """File -> what it pins down."""
    out = {name: list(given) for name, (_, given) in FORMATS.items()}
    for folder, files in (("masked", MASKED), ("crypten", CRYPTEN)):
        for name, given in files.items():
            out[name] = [one if "/" in one else f"protocols/{folder}/{one}" for one in given]
    return out


def gate_files() -> dict[str, list[Case]]:
    """File -> cases, of all gates."""
    return {
        **masked_files(),
        **moved_files(),
        **gather_files(),
        **lifted_files(),
        **softmax_files(),
        **routing_files(),
        **merging_files(),
        **crypten_files(),
        **output_files(),
    }


def content(name: str) -> dict[str, Any]:
    """What a file says, made anew."""
    made = FORMATS[name][0]() if name in FORMATS else {"cases": [record(case) for case in gate_files()[name]]}
    return {"pins": sources()[name], **made}


def path(name: str) -> Path:
    """A file."""
    return FOLDER / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    """What a file says."""
    found: dict[str, Any] = json.loads(path(name).read_text())
    return found


def text(value: Any) -> str:
    """JSON with a line for whatever fits one, or holds nothing that is nested twice; not indented, to be small."""
    flat = json.dumps(value)
    nested = isinstance(value, dict | list) and any(isinstance(v, dict | list) for v in _values(value))
    if not nested or len(flat) <= 240 or not isinstance(value, dict | list):
        return flat
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {text(v)}" for key, v in value.items()) + "\n}"
    return "[\n" + ",\n".join(map(text, value)) + "\n]"


def _values(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    yield from value.values() if isinstance(value, dict) else value


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Places where two contents are not the same; coefficients may differ in their last bits."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            if key not in old or key not in new:
                yield f"{where}/{key} is in one of them only"
            else:
                yield from differences(old[key], new[key], f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif isinstance(old, float) and isinstance(new, float) and "coefficients" in where:
        if abs(old - new) > REAL:
            yield f"{where} is {old}, made anew {new}"
    elif old != new:
        yield f"{where} is {str(old)[:60]!r}, made anew {str(new)[:60]!r}"
