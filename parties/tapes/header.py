"""The header of a tape on disk: what it is for and what it consists of, signed by the dealer. Public."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from parties.identity.certificates import Identity
from parties.identity.signatures import certificate_of, sign, verify
from parties.identity.trust import Peer
from parties.wire.manifest import Identifier, ProgramFacts

CONTEXT = "mpcache tape header 1"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hexadecimal = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")]


class TapeHeader(BaseModel):
    """What a tape is for.

    tape: its id, equal at all parties; a load's tape has the load's id. number: 0 for the load, sessions count from 1.
    created: Unix seconds. length: bytes of the chunks. seed, chunks: SHA-256 of the seed and of each encrypted chunk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["load", "session"]
    tape: Identifier
    load: Identifier
    number: Annotated[int, Field(ge=0)]
    created: Annotated[int, Field(ge=0)]
    dealer: str
    program: ProgramFacts
    party: str
    index: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=0)]
    seed: Digest
    chunks: list[Digest]

    def common(self) -> bytes:
        """Return SHA-256 of what the headers of all parties have in common."""
        own = {"party", "index", "length", "seed", "chunks"}
        return hashlib.sha256(_canonical(self.model_dump(mode="json", exclude=own))).digest()


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    certificate: Hexadecimal
    header: str
    signature: Hexadecimal


def _canonical(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def seal(header: TapeHeader, dealer: Identity) -> bytes:
    """Return the header with the dealer's certificate and signature, as it is stored."""
    text = _canonical(header.model_dump(mode="json"))
    signature = sign(dealer, CONTEXT, text)
    signed = _Signed(certificate=certificate_of(dealer).hex(), header=text.decode(), signature=signature.hex())
    return _canonical(signed.model_dump())


def unseal(data: bytes, dealer: Peer, own: Identity) -> TapeHeader | None:
    """Return a stored header that `dealer` of this deployment signed, None when it is damaged. own: of who reads it.

    Raises `PermissionRefused` when the signature is another's or no longer valid.
    """
    try:
        signed = _Signed.model_validate_json(data)
        if _canonical(signed.model_dump()) != data:
            return None
        text = signed.header.encode()
        verify(own, dealer, bytes.fromhex(signed.certificate), CONTEXT, text, bytes.fromhex(signed.signature))
        return TapeHeader.model_validate_json(text)
    except (ValidationError, UnicodeError):
        return None
