"""`mpcache classify`: classes of texts, or labels of their tokens, by an encoder on secret shares."""

from __future__ import annotations

from typing import Annotated, Any

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


def run(
    model: ModelOption,
    texts: TextsArgument = None,
    file: TextsFileOption = None,
    labels: Annotated[str | None, typer.Option("--labels", help="Names instead of config.json's id2label: A,B,C.")] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Labels of words, each its first token's, instead of tokens.")
    ] = False,
    suite: SuiteOption = DEFAULT_SUITE,
    parties: StartedPartiesOption = None,
    suite_option: SuiteOptionsOption = None,
    device: StartedDeviceOption = None,
    config: ClientConfigOption = None,
    name: SharedNameOption = None,
    insecure_trust_authority: TrustAuthorityOption = False,
    policy: NoPolicyOption = None,
) -> None:
    """Classify texts on secret shares with an encoder (BERT, RoBERTa, DistilBERT), one line of JSON each.

    Without --config, compute parties, a dealer and a model owner run as temporary processes of this machine. A checkpoint
    for token classification gives the labels of each token, or word. All texts go through one session. Scores and labels
    come to this process alone; parties learn how many texts there are, and their lengths to within a few sizes.
    """
    from parties.client.texts import as_record

    asked = Asked(model, suite, suite_option, parties, device, config, name, insecure_trust_authority)
    given = read_texts(texts, file)
    own = opened(asked, policy)
    names = None if labels is None else labels.split(",")
    own.reader.labels(names, words)
    tokens = [len(one.ids) for one in own.reader.read(given)]
    with asking(asked, own, tokens) as private:
        answers: list[Any] = list(private.classify(given, labels=names, words=words))
        for text, found in zip(given, answers, strict=True):
            show({"text": text if isinstance(text, str) else list(text), **as_record(found)})
