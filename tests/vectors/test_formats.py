"""Vectors of the formats, read by the independent implementation."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from parties.identity.certificates import Identity, check
from parties.tapes.header import TapeHeader, seal
from parties.wire.manifest import ProgramFacts
from tests.parties.deployment import Deployment
from tests.vectors.files import read
from tests.vectors.independent import curves, leaving, points
from tests.vectors.independent.formats import Stream, U, derived, octets, pack, reduce, same, signed, tensor, unpack
from tests.vectors.independent.lookup import by_points

CHUNK = 1 << 20


def test_generator() -> None:
    """AES-256 in counter mode; derived seeds."""
    given = read("generator")
    seed = bytes.fromhex(given["seed"])
    stream = Stream(seed)
    for draw in given["draws"]:
        if "bytes" in draw:
            assert same(stream.take(draw["bytes"]), draw["is"])
        else:
            assert np.array_equal(stream.elements(draw["is"]["shape"], draw["bits"]), tensor(draw["is"]))
    for one in given["derived"]:
        assert derived(seed, *(label.encode() for label in one["labels"])).hex() == one["is"]


def test_packing() -> None:
    """Every ring, both ways."""
    cases = read("packing")["cases"]
    assert [case["bits"] for case in cases] == list(range(1, 65))
    for case in cases:
        x, data = tensor(case["value"]), octets(case["is"])
        assert data is not None
        assert pack(x, case["bits"]) == data
        assert np.array_equal(unpack(data, case["bits"], x.shape), x)


def test_numbers() -> None:
    """Fixed point rounds half to even; products wrap."""
    given = read("numbers")
    for case in given["fixed_point"]:
        x = np.rint(np.array(case["reals"]) * 2.0 ** case["frac"]).astype(np.int64).view(U)
        assert np.array_equal(reduce(x, case["bits"]), tensor(case["is"]))
        back = signed(tensor(case["is"]), case["bits"]) / 2.0 ** case["frac"]
        assert back.tolist() == case["decoded"]
        assert np.abs(back - case["reals"]).max() <= 0.5 / 2.0 ** case["frac"]
    for case in given["products"]:
        product = tensor(case["left"]) @ tensor(case["right"])
        assert np.array_equal(reduce(product, case["bits"]), tensor(case["is"]))


def test_noise() -> None:
    """From the first word to the last one, where the logarithm of 1 is held above 0; one unit is a logarithm's last bit."""
    given = read("noise")
    real = leaving.gumbel(tensor(given["words"]))
    assert real.min() > -3.7
    assert abs(real.max() - 54 * np.log(2.0)) < 1e-12
    for case in given["scaled"]:
        found = signed(tensor(case["is"]), case["bits"])
        assert np.abs(found - np.rint(real * case["temperature"] * 2.0 ** case["frac"])).max() <= 1


def test_client_shares() -> None:
    """All shares come from seeds but the last, and they add up."""
    for case in read("client_shares")["cases"]:
        x = tensor(case["value"])
        own = [Stream(bytes.fromhex(seed)).elements(x.shape, 64) for seed in case["seeds"]]
        assert len(own) == case["parties"] - 1
        assert all(np.array_equal(a, tensor(b)) for a, b in zip(own, case["shares"], strict=True))
        assert same(pack(x - sum(own), 64), case["last"])


def test_point_functions() -> None:
    """Keys from the roots, both evaluations, and that they add up to a one-hot vector."""
    given = read("point_functions")
    for case in given["cases"]:
        width, bits = case["width"], case["bits"]
        roots = [tensor(r) for r in case["roots"]]
        words, controls, output = (tensor(case[f"{part}_corrections"]) for part in ("seed", "control", "output"))
        shares = []
        for i, point in enumerate(case["points"]):
            key = points.generate(point, [points.seed_of(r[i]) for r in roots], width, bits)
            assert [points.seed_of(level[i]) for level in words] == key[0]
            assert controls[:, i].tolist() == key[1]
            assert np.array_equal(output[i], key[2])
            shares.append([points.evaluate(p, points.seed_of(roots[p][i]), *key, bits) for p in range(2)])
        for p in range(2):
            assert same(pack(np.stack([s[p] for s in shares]), bits), case["shares"][p])
        hot = reduce(np.stack([a + b for a, b in shares]), bits)
        assert np.array_equal(hot, np.eye(1 << width, dtype=U)[case["points"]])
    chosen = {(c, w, b, p): way for c, w, b, p, way in given["choice"]}
    assert set(chosen.values()) == {"table", "dpf"}
    assert all(by_points(*of) == (way == "dpf") for of, way in chosen.items())


def test_coefficients() -> None:
    """Least squares at Chebyshev nodes, with numpy's functions."""
    given = read("coefficients")["curves"]
    for name, case in given.items():
        found = np.array(case["coefficients"])
        segments, degree = found.shape[0], found.shape[1] - 1
        own = curves.fitted(curves.root(float(name.split()[1])), case["start"], case["width"], segments, degree)
        assert np.abs(own - found).max() < 1e-9


def _sealed(seed: bytes, tape: str, stream: bytes) -> bytes:
    key = derived(seed, b"tape at rest", tape.encode())
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(stream)


def test_tape_file() -> None:
    """Encryption, the seed's commitment, hashes of chunks."""
    for case in read("tape_file")["cases"]:
        seed, header = bytes.fromhex(case["seed"]), case["header"]
        stream = Stream(bytes.fromhex(case["stream"]["generator"])).take(case["stream"]["size"])
        file = _sealed(seed, header["tape"], stream)
        assert same(file, case["file"])
        assert header["length"] == len(file)
        assert header["seed"] == hashlib.sha256(b"mpcache tape seed 1" + seed).hexdigest()
        pieces = [file[start : start + CHUNK] for start in range(0, len(file), CHUNK)]
        assert header["chunks"] == [hashlib.sha256(piece).hexdigest() for piece in pieces]


@pytest.fixture(scope="module")
def dealer(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A dealer's identity."""
    return check(Deployment(tmp_path_factory.mktemp("dealer")).certificates, "dealer")


def test_tape_header(dealer: Identity) -> None:
    """Canonical JSON in canonical JSON, and a signature over context and header; a signature is not deterministic, so it is
    made here."""
    facts: dict[str, Any] = {
        "kind": "session",
        "tape": "1" * 32,
        "load": "2" * 32,
        "number": 1,
        "created": 1,
        "dealer": "dealer",
        "party": "party1",
        "index": 1,
        "length": 0,
        "seed": "0" * 64,
        "chunks": [],
    }
    header = TapeHeader.model_construct(**facts, program=ProgramFacts.model_construct())
    outer = json.loads(seal(header, dealer))
    inner = json.loads(outer["header"])
    assert set(outer) == {"certificate", "header", "signature"}
    assert outer["header"] == json.dumps(inner, sort_keys=True, separators=(",", ":"))
    assert {key: inner[key] for key in facts} == facts
    context = b"mpcache tape header 1"
    message = len(context).to_bytes(8, "little") + context + outer["header"].encode()
    key = x509.load_der_x509_certificate(bytes.fromhex(outer["certificate"])).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(bytes.fromhex(outer["signature"]), message, ec.ECDSA(hashes.SHA256()))
