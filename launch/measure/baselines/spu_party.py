"""One party of a decode step or of a prompt in SecretFlow-SPU. Runs under a Python that has `spu`, and imports nothing of
this project.

    python spu_party.py FOLDER RANK

FOLDER/plan.json says what to run. Every party writes FOLDER/party-RANK.json; bytes and send actions are those that SPU
itself logs for each program ("Link details"). All values follow from a public seed: nothing here is secret. Weights, cache
and input become secret by adding a shared zero, so the programs see secrets as in real use and nothing is shipped
beforehand.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spu
from spu import api, libspu
from spu.utils import frontend

LINK = re.compile(rb"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")
ZERO = "zero"
HIDDEN = -100.0  # the score of a later token: e^x of it is 0 in SPU's fixed point, and still in range of its polynomial
POLL_SECONDS = 0.05


def gelu_puma(x: Any) -> Any:
    """Compute GELU by polynomials on two segments (Dong et al., PUMA, 2023)."""
    low = ((-0.011034134030615728 * x - 0.11807612951181953) * x - 0.42226581151983866) * x - 0.5054031199708174
    s = x * x
    high = ((0.0018067462606141187 * s - 0.037688200365904236) * s + 0.3603292692789629) * s + 0.5 * x + 0.008526321541038084
    middle = jnp.where(x < -1.95, low, high)
    return jnp.where(x < -4, 0.0, jnp.where(x > 3, x, middle))


def norm(x: Any) -> Any:
    """Compute LayerNorm with gain 1 and offset 0, [T, D]."""
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-5)


def attended(scores: Any, values: Any) -> Any:
    """Compute softmax(scores) values. scores: [H, T, N]; values: [H, N, C]. Returns [H, T, C]."""
    scores = scores - jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores)
    return jnp.einsum("hqn,hnc->hqc", weights, values) / jnp.sum(weights, -1, keepdims=True)


def feed_forward(h: Any, mixed: Any, out: Any, up: Any, down: Any, biases: Any) -> Any:
    """Compute what follows attention. h: [T, D]; mixed: [H, T, C]. Returns [T, D]."""
    rows, width = h.shape
    h = h + mixed.transpose(1, 0, 2).reshape(rows, width) @ out + biases[3 * width : 4 * width]
    inner = gelu_puma(norm(h) @ up + biases[4 * width : 8 * width])
    return h + inner @ down + biases[8 * width :]


def queries_keys_values(h: Any, heads: int, qkv: Any, biases: Any) -> Any:
    """Compute queries, keys and values of the tokens, each [H, T, C]. h: [T, D]."""
    rows, width = h.shape
    joined = norm(h) @ qkv + biases[: 3 * width]
    parts = (joined[:, n * width : (n + 1) * width] for n in range(3))
    return [part.reshape(rows, heads, width // heads).transpose(1, 0, 2) for part in parts]


def token_layer(h: Any, keys: Any, values: Any, qkv: Any, out: Any, up: Any, down: Any, biases: Any) -> Any:
    """Compute one GPT-2 layer for one token. h: [1, D]; keys, values: [H, N, C] cached; weights [in, out]. Returns [1,
    D]."""
    q, k, v = queries_keys_values(h, keys.shape[0], qkv, biases)
    keys, values = jnp.concatenate([keys, k], 1), jnp.concatenate([values, v], 1)
    mixed = attended(jnp.einsum("hqc,hnc->hqn", q, keys), values)
    return feed_forward(h, mixed, out, up, down, biases)


def prompt_layer(heads: int) -> Any:
    """Return one GPT-2 layer for a prompt, [T, D] to [T, D]: no token attends to a later one."""

    def layer(h: Any, qkv: Any, out: Any, up: Any, down: Any, biases: Any) -> Any:
        q, k, v = queries_keys_values(h, heads, qkv, biases)
        seen = jnp.tril(jnp.ones((h.shape[0], h.shape[0]), dtype=bool))
        mixed = attended(jnp.where(seen, jnp.einsum("hqc,hnc->hqn", q, k), HIDDEN), v)
        return feed_forward(h, mixed, out, up, down, biases)

    return layer


def head(h: Any, table: Any) -> Any:
    """Return the logits of one token and the index of the largest. h: [1, D]; table: [D, V]."""
    return jnp.argmax(norm(h) @ table, -1)


def values_of(plan: dict[str, Any]) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Return the inputs of each program, from the plan's seed."""
    width, heads, cached, tokens = plan["width"], plan["heads"], plan["cached"], plan["tokens"]
    rng = np.random.default_rng(plan["seed"])

    def normal(*shape: int, deviation: float = 0.02) -> np.ndarray[Any, Any]:
        return rng.normal(0, deviation, shape).astype(np.float32)

    channels = width // heads
    deviation = 0.02 * width**0.5
    qkv = normal(width, 3 * width)
    qkv[:, :width] *= channels**-0.5
    layer = {"h": normal(tokens, width, deviation=1.0)}
    if cached:
        layer["keys"] = normal(heads, cached, channels, deviation=deviation)
        layer["values"] = normal(heads, cached, channels, deviation=deviation)
    layer |= {
        "qkv": qkv,
        "out": normal(width, width),
        "up": normal(width, 4 * width),
        "down": normal(4 * width, width),
        "biases": normal(9 * width),
    }
    return {"layer": layer, "head": {"h": normal(1, width, deviation=1.0), "table": normal(width, plan["vocabulary"])}}


class Captured:
    """Everything that this process and the library in it print, kept in a file; `since` reads what is new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(file, stream)

    def since(self) -> bytes:
        """Return what was printed since the last call."""
        data = self.path.read_bytes()
        new, self._at = data[self._at :], len(data)
        return new


def runtime_config(plan: dict[str, Any]) -> Any:
    """Return SPU's settings: 64-bit ring, its default precision, the exponential that the plan asks for."""
    config = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, plan["protocol"]), field=libspu.FieldType.FM64, fxp_fraction_bits=18
    )
    config.fxp_exp_mode = getattr(libspu.RuntimeConfig.ExpMode, plan["exp"])
    config.enable_hal_profile = True
    config.enable_pphlo_profile = True
    return config


def compiled(function: Any, arguments: dict[str, Any], secret: bool, output: str) -> Any:
    """Compile a program for `function` whose inputs are named after its arguments."""
    visibility = libspu.Visibility.VIS_SECRET if secret else libspu.Visibility.VIS_PUBLIC
    options = libspu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True
    names = list(arguments)
    kinds = [libspu.Visibility.VIS_SECRET if name == ZERO else visibility for name in names]
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in arguments.values()]
    executable, _ = frontend.compile(
        frontend.Kind.JAX, function, shapes, {}, names, kinds, lambda out: [output], copts=options
    )
    return executable


def shared_zero(plan: dict[str, Any], folder: Path, rank: int, link: Any, config: Any) -> Any:
    """Return this party's share of a secret 0, made by party 0."""
    parties = len(plan["addresses"])
    paths = [folder / f"zero-{n}" for n in range(parties)]
    if rank == 0:
        io = api.Io(parties, config)
        for path, share in zip(paths, io.make_shares(np.zeros(1, np.float32), libspu.Visibility.VIS_SECRET), strict=True):
            chunks = [chunk.hex() for chunk in share.share_chunks]
            path.write_text(json.dumps({"meta": share.meta.hex(), "chunks": chunks}), encoding="utf-8")
    link.barrier()
    kept = json.loads(paths[rank].read_text(encoding="utf-8"))
    share = libspu.Share()
    share.meta = bytes.fromhex(kept["meta"])
    share.share_chunks = [bytes.fromhex(chunk) for chunk in kept["chunks"]]
    return share


def main() -> None:
    """Run the plan's programs and write what they cost."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    captured = Captured(folder / f"party-{rank}.log")
    description = libspu.link.Desc()
    for n, address in enumerate(plan["addresses"]):
        description.add_party(f"party{n}", address)
    description.recv_timeout_ms = 600_000
    link = libspu.link.create_brpc(description, rank)
    config = runtime_config(plan)
    zero = shared_zero(plan, folder, rank, link, config)
    runtime = api.Runtime(link, config)
    record: dict[str, Any] = {"spu": getattr(spu, "__version__", "unknown"), "programs": {}}
    layer = token_layer if plan["cached"] else prompt_layer(plan["heads"])
    for name, function in (("layer", layer), ("head", head)):
        inputs = values_of(plan)[name]
        runtime.set_var(ZERO, zero)
        for key, value in inputs.items():
            _make_secret(runtime, key, value, plan)
        program = compiled(function, inputs, True, "result")
        runs = []
        for _ in range(plan["repeat"] + 1):
            link.barrier()
            captured.since()
            start, own = time.perf_counter(), time.process_time()
            runtime.run(program)
            seconds, cpu = time.perf_counter() - start, time.process_time() - own
            found = LINK.findall(captured.since())
            sent, received, send_actions, receive_actions = (int(n) for n in found[-1]) if found else (-1, -1, -1, -1)
            runs.append(
                {
                    "seconds": seconds,
                    "cpu_seconds": cpu,
                    "bytes_sent": sent,
                    "bytes_received": received,
                    "send_actions": send_actions,
                    "receive_actions": receive_actions,
                }
            )
        share = runtime.get_var("result")
        plain = np.asarray(function(**{key: jnp.asarray(value) for key, value in inputs.items()}))
        result = {"meta": share.meta.hex(), "chunks": [chunk.hex() for chunk in share.share_chunks]}
        (folder / f"{name}-{rank}").write_text(json.dumps(result), encoding="utf-8")
        link.barrier()
        error = _error(folder, name, config, plain, len(plan["addresses"]), link) if rank == 0 else None
        record["programs"][name] = {"runs": runs[1:], "max_error": error}
    record["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    link.barrier()  # nobody's last message is under way when a party below leaves
    (folder / f"party-{rank}.new").write_text(json.dumps(record), encoding="utf-8")
    (folder / f"party-{rank}.new").rename(folder / f"party-{rank}.json")
    while not all((folder / f"party-{n}.json").exists() for n in range(len(plan["addresses"]))):
        time.sleep(POLL_SECONDS)
    os._exit(0)


def _make_secret(runtime: Any, name: str, value: Any, plan: dict[str, Any]) -> None:
    io = api.Io(len(plan["addresses"]), runtime_config(plan))
    public = io.make_shares(value, libspu.Visibility.VIS_PUBLIC)[0]
    source = f"public {name}"
    runtime.set_var(source, public)
    program = compiled(
        lambda x, z: x + z.reshape((1,) * x.ndim), {source: value, ZERO: np.zeros(1, np.float32)}, False, name
    )
    runtime.run(program)
    runtime.del_var(source)


def _error(folder: Path, name: str, config: Any, plain: Any, parties: int, link: Any) -> float:
    shares = []
    for n in range(parties):
        kept = json.loads((folder / f"{name}-{n}").read_text(encoding="utf-8"))
        share = libspu.Share()
        share.meta = bytes.fromhex(kept["meta"])
        share.share_chunks = [bytes.fromhex(chunk) for chunk in kept["chunks"]]
        shares.append(share)
    return float(np.max(np.abs(np.asarray(api.Io(parties, config).reconstruct(shares), np.float64) - plain)))


if __name__ == "__main__":
    main()
