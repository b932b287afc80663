"""`mpcache embed`: embeddings of texts, by an encoder on secret shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from launch.cli.commands.encoder_texts import (
    Asked,
    NoPolicyOption,
    TextsArgument,
    TextsFileOption,
    asking,
    opened,
    read_texts,
    show,
)
from launch.cli.commands.generate import ClientConfigOption, SharedNameOption, StartedDeviceOption, StartedPartiesOption
from launch.cli.options import DEFAULT_SUITE, ModelOption, SuiteOption, SuiteOptionsOption, TrustAuthorityOption

if TYPE_CHECKING:
    from parties.client.texts import Pooling


def run(
    model: ModelOption,
    texts: TextsArgument = None,
    file: TextsFileOption = None,
    pooling: Annotated[
        str | None,
        typer.Option("--pooling", help="mean, cls or pooled; by default as a sentence encoder's folder says, else mean."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not bring embeddings to length 1.")] = False,
    suite: SuiteOption = DEFAULT_SUITE,
    parties: StartedPartiesOption = None,
    suite_option: SuiteOptionsOption = None,
    device: StartedDeviceOption = None,
    config: ClientConfigOption = None,
    name: SharedNameOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
    policy: NoPolicyOption = None,
) -> None:
    """Embed texts on secret shares with an encoder (MiniLM, BERT, RoBERTa, DistilBERT), one line of JSON each.

    Without --config, compute parties, a dealer and a model owner run as temporary processes of this machine. All texts go
    through one session. Embeddings come to this process alone; parties learn how many texts there are, and their lengths to
    within a few sizes.
    """
    asked = Asked(model, suite, suite_option, parties, device, config, name, insecure_trust_authority)
    given = read_texts(texts, file)
    own = opened(asked, policy)
    own.reader.pooling(pooling)
    tokens = [len(one.ids) for one in own.reader.read(given)]
    with asking(asked, own, tokens) as private:
        rows = private.embed(given, pooling=cast("Pooling | None", pooling), normalize=False if raw else None)
        for text, row in zip(given, rows, strict=True):
            numbers = [float(f"{x:.7g}") for x in row.tolist()]
            show({"text": text if isinstance(text, str) else list(text), "embedding": numbers})
