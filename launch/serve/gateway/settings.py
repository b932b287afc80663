"""What the person who starts a gateway decides."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from mpc.errors import ConfigurationError
from parties.client.drafting import Draft
from parties.files import write_file
from parties.names import is_loopback
from protocols.registry import USUAL, SuiteSpec

SHORTEST_KEY = 16
KEY_FILE = "gateway-keys.txt"


@dataclass(frozen=True)
class GatewaySettings:
    """keys: bearer keys; empty, none is asked for (`--insecure-no-key`). hosts: names that a request may call this gateway
    by, besides addresses. default_temperature, default_max_tokens (chat): where a request says nothing. allow_logits: the
    client may learn logits, which top_p and top_k need. fixed_length: parties generate as many tokens as a request allows,
    so that they do not learn the answer's length. draft: of requests that take the likeliest tokens; a sample cannot be
    verified and goes without. prompt_buckets: prompts are padded to the least of these lengths that holds
    them. prefix: the registered prefix of requests that name none (`prefixes.behind`). max_queue:
    requests that wait for their turn. drop_unsupported: parameters that cannot be met are left out, and a header of the
    answer names them; otherwise they are refused. party_seconds: that a request waits for a party or dealer that cannot be
    reached."""

    suite: SuiteSpec = USUAL
    policy: str = "full"
    allow_logits: bool = False
    fixed_length: bool = False
    draft: Draft | None = None
    prompt_buckets: tuple[int, ...] = ()
    prefix: str | None = None
    default_temperature: float = 0.0
    default_max_tokens: int = 256
    max_concurrent: int = 4
    max_queue: int = 16
    drop_unsupported: bool = False
    max_body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    party_seconds: float = 5.0
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    hosts: frozenset[str] = frozenset({"localhost"})


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Read bearer keys, one a line (# begins a comment).

    Raises `ConfigurationError` for a file that cannot be read or that others can read, and for a weak key.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"--api-key-file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--api-key-file {path} is not a UTF-8 text file") from None
    if mode & 0o077:
        raise ConfigurationError(f"--api-key-file {path}: others may read it (mode {mode:04o}): run `chmod 600 {path}`")
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigurationError(
            f"--api-key-file {path} holds no key; write one a line, such as from `openssl rand -hex 32`"
        )
    if any(len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ConfigurationError(
            f"--api-key-file {path}: a key needs at least {SHORTEST_KEY} ASCII characters without spaces; "
            "make one with `openssl rand -hex 32`"
        )
    return tuple(key.encode() for key in keys)


def own_keys(path: Path) -> tuple[tuple[bytes, ...], str | None]:
    """Return the keys in a gateway's own file, and the key of a new file: one is made, mode 0600, when there is none.

    Raises `ConfigurationError` as `read_keys` does, and when the file cannot be made.
    """
    made: str | None = secrets.token_hex(32)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.exists():
            return read_keys(path), None
        write_file(draft, f"# Keys of the gateway, one a line: Authorization: Bearer KEY\n{made}\n".encode(), 0o600)
        os.link(draft, path)
    except FileExistsError:
        made = None  # another gateway has made it meanwhile
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written ({error.strerror}): give --api-key-file, a file of keys"
        ) from None
    finally:
        draft.unlink(missing_ok=True)
    return read_keys(path), made


def check_listen(host: str, tls: bool, insecure: bool) -> None:
    """Raise `ConfigurationError` for an address that others reach, unless TLS protects the key (or a person insists)."""
    if is_loopback(host) or tls or insecure:
        return
    raise ConfigurationError(
        f"--listen {host}: others could reach this address, and prompts, answers and keys pass it in the clear; add "
        "--tls-certificate with --tls-key, listen at 127.0.0.1, or say --insecure-listen"
    )
