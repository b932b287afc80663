"""Options that several commands share, and how a prompt is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from launch.terminal.console import Settings
from launch.terminal.texts import decode_text, read_text_file
from mpc.errors import ConfigurationError

if TYPE_CHECKING:
    from models.architectures import AnyArchitecture
    from models.outputs import Decoding
    from models.plans import Leaving
    from parties.client.drafting import Draft

DEFAULT_SUITE = "masked"
MODEL_HELP = "Hugging Face checkpoint directory, GGUF file, or a model that `mpcache fetch` has fetched, such as smollm2."
SHAPE_HELP = (
    "A known shape (gpt2, llama-2-7b, bert-base ...), a checkpoint directory, its config.json, a GGUF file, or a model that "
    "`mpcache fetch` has fetched."
)
SuiteOptionValue = bool | int | float | str | None


def checkpoint_folder(option: typer.CallbackParam, model: Path | None) -> Path | None:
    """Return the folder that a model's path or name stands for (`launch.checkpoints.naming`); for a GGUF file that of its
    model, which is converted into the cache unless it is there."""
    from launch.checkpoints.naming import named_folder
    from models.gguf.header import is_gguf

    model = None if model is None else named_folder(model, option.opts[0])
    if model is None or not is_gguf(model):
        return model
    from launch.checkpoints.converting import convert
    from launch.terminal.progress import stages

    with stages(in_bytes=True) as progress:
        return convert(model, None, progress)


def shape_name(text: str | None) -> str | None:
    """Return what `models.shapes.find_description` reads, for a fetched model its folder."""
    from launch.checkpoints.naming import named_shape

    return None if text is None else named_shape(text)


def model_option(text: str) -> Any:
    """Return the option --model of a checkpoint, with the help `text`; commands get its folder."""
    return typer.Option("--model", help=text, callback=checkpoint_folder)


def asked_for_json(wanted: bool) -> bool:
    """Remember for the process that standard output is JSON: of an error, too."""
    Settings.as_json = wanted
    return wanted


def tokenizer_option() -> Any:
    """Return the option --tokenizer; commands get the folder."""
    return typer.Option(
        "--tokenizer",
        help="Folder with config.json and the tokenizer's files, GGUF file, or fetched model.",
        callback=checkpoint_folder,
    )


ModelOption = Annotated[Path, model_option(MODEL_HELP)]
SuiteOption = Annotated[str, typer.Option("--suite", help="Protocol suite: masked, or crypten.")]
PartiesOption = Annotated[int, typer.Option("--parties", min=2, max=16, help="Number of compute parties.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where shares are computed on: cpu, cuda, cuda:1 ...")]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=asked_for_json,
        is_eager=True,
        help='Print exactly one JSON object on standard output; of an error, {"error": {"code", "message"}}.',
    ),
]
ConfigOption = Annotated[Path, typer.Option("--config", help="The role's configuration file (YAML).")]
TrustAuthorityOption = Annotated[
    bool,
    typer.Option(
        "--insecure-trust-authority",
        help="Take any key that the authority certifies for a peer's, where the file says no fingerprint.",
    ),
]
SuiteOptionsOption = Annotated[
    list[str] | None,
    typer.Option("--suite-option", metavar="NAME=VALUE", help="An option of the suite, such as score=8; may be repeated."),
]
PolicyOption = Annotated[
    str,
    typer.Option("--policy", help="Cache policy, such as mpcache or mpcache:static=0.4,dynamic=0.1; see docs/policies.md."),
]
DecodingOption = Annotated[
    str | None,
    typer.Option(
        "--decoding",
        help="greedy (default); sample: at a temperature, nobody sees logits; logits: the client sees them and chooses, "
        "where the parties' configurations grant it.",
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", help="Sample at this temperature, public, at most 100 (implies --decoding sample)."),
]
TopKOption = Annotated[int | None, typer.Option("--top-k", help="With --decoding logits: the k most likely tokens only.")]
TopPOption = Annotated[float | None, typer.Option("--top-p", help="With --decoding logits: the likeliest tokens up to p.")]
FixedLengthOption = Annotated[
    bool,
    typer.Option(
        "--fixed-length",
        help="Parties always generate --max-new-tokens tokens, the answer is cut here: else they learn its length.",
    ),
]
PromptBucketsOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-buckets",
        metavar="64,128,...",
        help="Pad the prompt to the least of these lengths that holds it, in secret: all that parties and dealer learn of "
        "its length, and what tapes of `mpcache deal --padded` serve. With policy full.",
    ),
]
DraftOption = Annotated[
    str,
    typer.Option(
        "--draft",
        help="Guess tokens here, for the parties to check several in the rounds of one; the answer is the same. ngram: what "
        "followed the same words before (ngram:tokens=4,longest=3); or the folder of a small public checkpoint with the "
        "model's tokenizer (FOLDER:tokens=4). Public then: guesses of a step, and how many of each step were right.",
    ),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        help="Begin behind a registered prefix (`mpcache prefix ls`): a name, whose text the prompt continues; auto: the "
        "prompt is whole, and begins behind the longest public prefix that it begins with.",
    ),
]
ChunksOption = Annotated[
    str | None,
    typer.Option("--chunks", help="Registered texts between prefix and prompt: names in order, separated by commas."),
]
RepairOption = Annotated[
    float,
    typer.Option(
        "--repair", min=0, max=1, help="With --chunks: share of their tokens, the first ones, that is computed again."
    ),
]
RetrievalOption = Annotated[
    Literal["secret", "public"],
    typer.Option(
        "--retrieval",
        help="With --chunks: secret, nobody learns which of --candidates are read; public, parties and dealer do, for less.",
    ),
]
CandidatesOption = Annotated[
    str | None,
    typer.Option(
        "--candidates",
        help="Registered texts, all of one length, that --chunks are chosen among in secret: names separated by commas. By "
        "default all of that length.",
    ),
]
KeptOption = Annotated[
    int,
    typer.Option("--kept", min=1, help="With --draft: rows of each step that stay, as is expected; 1 at worst."),
]
SupervisedOption = Annotated[bool, typer.Option("--supervised", hidden=True)]


def suite_options(items: list[str] | None) -> dict[str, SuiteOptionValue]:
    """Read options of a suite from NAME=VALUE; numbers, true and false are read as such. Raises `ConfigurationError`.

    >>> suite_options(["score=8", "residual=10*2 15"])
    {'score': 8, 'residual': '10*2 15'}
    """
    found: dict[str, SuiteOptionValue] = {}
    for item in items or []:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier() or not text:
            raise ConfigurationError(f"--suite-option '{item}' is not NAME=VALUE, such as score=8")
        if name in found:
            raise ConfigurationError(f"--suite-option '{name}' was given twice")
        found[name] = _option_value(text)
    return found


def options_for(model: str, suite: str, items: list[str] | None) -> dict[str, SuiteOptionValue]:
    """Return `suite_options` over the bounds that the `mpcache.json` beside a checkpoint has for the suite: what sessions of
    this model run with. model: a folder; of anything else there are none."""
    from models.calibration.record import read_record
    from protocols.registry import SuiteSpec

    given = suite_options(items)
    record = read_record(Path(model)) if Path(model).is_dir() else None
    return given if record is None else dict(SuiteSpec(suite, options=given).over(record.suites.get(suite, {})).options)


def _option_value(text: str) -> SuiteOptionValue:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def prompt_buckets(text: str | None) -> tuple[int, ...]:
    """Return the lengths of --prompt-buckets, none without it. Raises `ConfigurationError`.

    >>> prompt_buckets("64,128")
    (64, 128)
    """
    from models.padding import check_buckets

    try:
        found = () if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--prompt-buckets '{text}': write lengths separated by commas, such as 64,128") from None
    check_buckets(found)
    return found


def chosen_draft(text: str) -> Draft | None:
    """Return the draft that --draft asks for, None for off. Raises `ConfigurationError`."""
    from parties.client.draft_text import parse_draft

    return parse_draft(text)


def chosen_decoding(decoding: str | None, temperature: float | None) -> Decoding:
    """Return the decoding that the options ask for. Raises `ConfigurationError` for an unknown one."""
    from models.outputs import Decoding

    chosen = decoding or ("greedy" if temperature is None else "sample")
    if chosen not in get_args(Decoding):
        raise ConfigurationError(f"--decoding '{chosen}' is unknown; choose one of: {', '.join(get_args(Decoding))}")
    return cast(Decoding, chosen)


def agreed_choice(
    decoding: str | None, temperature: float | None, description: AnyArchitecture | None = None
) -> tuple[Leaving, float | None]:
    """Return the decoding, and the temperature that is part of what parties compute (1 for a sample without one). Of an
    encoder's `description` it is an output, by default the one that it was trained for.

    Raises `ConfigurationError` for values that do not go together.
    """
    from models.encoder_architecture import EncoderArchitecture
    from models.generation import check_agreed_temperature
    from models.plans import Leaving

    if isinstance(description, EncoderArchitecture):
        output = decoding or description.usual_output
        description.check_output(output)
        check_agreed_temperature(output, temperature)
        return cast(Leaving, output), None
    known = chosen_decoding(decoding, temperature)
    agreed = 1.0 if known == "sample" and temperature is None else temperature
    check_agreed_temperature(known, agreed)
    return known, agreed


def read_prompt(text: str | None, file: Path | None, required: bool = True) -> str | None:
    """Read the prompt from the option or the file ("-": standard input).

    Raises `ConfigurationError` when both or (if required) none are given, or the file is unreadable or empty.
    """
    if text is not None and file is not None:
        raise ConfigurationError("--prompt and --prompt-file were both given; give one of them")
    if text is None and file is None:
        if required:
            raise ConfigurationError("no prompt was given; use --prompt TEXT or --prompt-file FILE (- for standard input)")
        return None
    if file is not None:
        if str(file) == "-":
            text = decode_text(sys.stdin.buffer.read(), "standard input")
        else:
            text = read_text_file(file, "--prompt-file")
        text = text.removesuffix("\n")
    if not text:
        raise ConfigurationError("the prompt is empty; give at least one token")
    return text
