"""/v1/embeddings: OpenAI's requests for embeddings, answered by an encoder on shares, all texts of a request in one
session.

A message never repeats a value of the request, which may be secret.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from launch.serve.gateway.catalogue import Served
from launch.serve.gateway.errors import invalid
from launch.serve.gateway.parameters import parse_body
from launch.serve.gateway.patience import Progress
from launch.serve.gateway.settings import GatewaySettings
from models.tokenizer.text import EncodedText
from parties.client.cancellation import Cancellation
from parties.client.client import Client
from parties.client.encoding import EncodingRequest
from parties.client.texts import TextReader, stacked

MOST_TEXTS = 2048  # OpenAI's


class EmbeddingParameters(BaseModel):
    """Body of /v1/embeddings. dimensions: the model's own alone."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model: str
    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


@dataclass(frozen=True)
class AskedEmbeddings:
    """What the parties are asked. texts: secret."""

    model: str
    request: EncodingRequest = field(repr=False)
    texts: list[EncodedText] = field(repr=False)
    normalised: bool
    encoding: str

    def rows(self, client: Client, cancellation: Cancellation, on_progress: Progress) -> Tensor:
        """Return the embeddings, float32 [n, D]. Raises what `Client.encode_all` does."""
        found = client.encode_all(self.request, on_progress=on_progress, cancellation=cancellation)
        return stacked(found, self.normalised)

    def body(self, rows: Tensor) -> dict[str, Any]:
        """Return the answer in OpenAI's format."""
        tokens = sum(len(text.ids) for text in self.texts)
        data = [{"object": "embedding", "index": n, "embedding": _encoded(row, self.encoding)} for n, row in enumerate(rows)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}


def _encoded(row: Tensor, encoding: str) -> list[float] | str:
    """Return an embedding as numbers, or as base64 of little-endian float32."""
    if encoding == "float":
        return [float(x) for x in row.tolist()]
    return base64.b64encode(row.cpu().numpy().astype("<f4").tobytes()).decode()


def parse_parameters(body: bytes) -> EmbeddingParameters:
    """Return the checked request. Raises `ApiError` naming the parameter."""
    return parse_body(EmbeddingParameters, body)


def asked(parameters: EmbeddingParameters, served: Served, settings: GatewaySettings) -> AskedEmbeddings:
    """Return what a request asks for. Raises `ApiError`, `ConfigurationError` for a decoder or a text that is too long."""
    architecture = served.reference.encoder
    if parameters.dimensions not in (None, architecture.width):
        raise invalid(f"this model's embeddings have {architecture.width} dimensions", "dimensions", "invalid_value")
    reader = TextReader(architecture, served.words.tokenizer, served.words.folder)
    given = parameters.input
    listed = [given] if isinstance(given, str) else list(given)
    if not listed or not all(isinstance(text, str) for text in listed):
        raise invalid("input must be a text or a list of texts; token ids are not read", "input", "invalid_value")
    encoded = reader.read([text for text in listed if isinstance(text, str)])
    texts = [reader.input(text) for text in encoded]
    request = EncodingRequest(texts, reader.pooling(None), settings.suite, served.reference)
    return AskedEmbeddings(parameters.model, request, encoded, reader.normalises(None), parameters.encoding_format)
