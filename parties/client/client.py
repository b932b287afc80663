"""The client: shares its prompt, and alone puts the output together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from torch import Tensor

from models.architecture import Architecture
from models.generation import Decoding, GenerationPlan
from mpc.errors import ConfigurationError
from parties.client.cancellation import Cancellation
from parties.client.model_reference import ModelReference, close_all, common_models, connect_all, describe_all
from parties.client.sampling import check_filters
from parties.client.session import Adjust, ClientSession, FinishReason, Wanted
from parties.config.role_config import RoleConfig
from parties.errors import RangeExceeded
from parties.identity.certificates import Identity
from parties.identity.trust import own_identity
from parties.transport.channel_pool import ChannelPool
from parties.transport.heartbeat import HeartbeatMonitor
from parties.wire.manifest import PROTOCOL_VERSION, Manifest, Option, architecture_hash, new_id, package_version
from protocols.gumbel import check_temperature
from protocols.range_findings import RangeFinding
from protocols.registry import SUITES, suite_class

DEFAULT_SUITE = "masked"


@dataclass(frozen=True)
class GenerationResult:
    """What a session gave. tokens and logits are secret; costs are public.

    costs: party name -> its ledger (`Ledger.to_json`). seconds: from opening the session to the last token;
    token_seconds: to each token. logits: float64 [tokens, V] for decoding "logits".

    finish_reason: "stop": an end-of-text token, or the caller, ended it. "length": there are new_tokens tokens. "range": a
    value left its declared range on the way to the next token, which is therefore not here; `findings` has all kinds and
    places, in the order of the computation. Tokens before it are right up to precision.
    """

    tokens: list[int] = field(repr=False)
    costs: dict[str, dict[str, Any]] = field(repr=False)
    seconds: float
    token_seconds: list[float]
    session: str
    finish_reason: FinishReason
    findings: tuple[RangeFinding, ...] = ()
    logits: Tensor | None = field(default=None, repr=False)

    @property
    def stopped(self) -> bool:
        """Whether an end-of-text token, or the caller, ended it."""
        return self.finish_reason == "stop"

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from opening the session to the first token; None without one."""
        return self.token_seconds[0] if self.token_seconds else None

    def check_range(self, text: str | None = None) -> None:
        """Raise `RangeExceeded`, with this result and the text so far, if a value left its range."""
        if self.findings:
            raise RangeExceeded(self.findings, text, self)


class Client:
    """A client of the compute parties of its configuration.

    keep_connections: channels stay open between sessions until `close`; otherwise each call connects anew. Calls from
    several threads may run at the same time. Raises `ConfigurationError` when role or certificates are wrong, and when the
    configuration says no fingerprint of a party.
    """

    def __init__(self, config: RoleConfig, keep_connections: bool = False) -> None:
        if config.role != "client":
            raise ConfigurationError(f"configuration is for role '{config.role}', not for 'client'")
        self.config = config
        self._credentials = own_identity(config)
        self.version = package_version()
        self._kept = ChannelPool(config, lambda: self.identity) if keep_connections else None

    def close(self) -> None:
        """Close the connections that were kept."""
        if self._kept is not None:
            self._kept.close()

    @contextmanager
    def _connected(
        self, waiting: Callable[[str], None], check: Callable[[], None] = lambda: None
    ) -> Iterator[list[grpc.Channel]]:
        """Channels to all parties, for the time of the block."""
        if self._kept is not None:
            with self._kept.lend(waiting, check) as channels:
                yield channels
            return
        channels = connect_all(self.config, self.identity, waiting, check)
        try:
            yield channels
        finally:
            close_all(channels)

    @property
    def identity(self) -> Identity:
        """The identity of the moment: a renewed certificate is used from when it lies in the folder."""
        return self._credentials.current

    def models(self, on_waiting: Callable[[str], None] = lambda reason: None) -> list[ModelReference]:
        """The models that all parties hold."""
        with self._connected(on_waiting) as channels:
            return common_models(describe_all(self.config, channels))

    def find_model(self, model: str | None = None) -> ModelReference:
        """The model with this id or name; without one, the only model. Raises `ConfigurationError` listing what there is."""
        held = self.models()
        found = [m for m in held if model is None or model in (m.id, m.name)]
        if len(found) == 1:
            return found[0]
        listed = "; ".join(f"{m.name} ({m.id})" for m in held) or "none: let the model owner share one first"
        problem = f"{len(found)} models fit" if found else "no model fits"
        raise ConfigurationError(f"{problem} {'the request' if model is None else repr(model)}; all parties hold: {listed}")

    def generate(
        self,
        prompt_ids: Sequence[int],
        new_tokens: int,
        *,
        model: ModelReference | str | None = None,
        suite: str = DEFAULT_SUITE,
        fraction_bits: int | None = None,
        options: dict[str, Option] | None = None,
        policy: str = "full",
        decoding: Decoding = "greedy",
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_ids: Sequence[int] | None = None,
        adjust: Adjust | None = None,
        fixed_length: bool = False,
        cancellation: Cancellation | None = None,
        on_token: Callable[[int], bool | None] = lambda token: None,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> GenerationResult:
        """Generate up to `new_tokens` tokens after the prompt.

        model: a reference, an id or a name. options: of the suite; they go over the bounds that the model's owner gave.
        policy: the cache policy's text (`models.policies.registry`). decoding: "greedy"
        (default); "sample" at `temperature` (default 1, public), by noise that the dealer deals; nobody learns logits;
        "logits", where every party grants it: this client learns them and takes the most likely token, or samples at
        `temperature` with `top_k` and `top_p`; `adjust` may change the logits before the choice. stop_ids: tokens that end
        the generation (default: the model's end-of-text tokens). on_token(token): may return False to stop.
        on_progress(stage, done, total). fixed_length: parties always generate `new_tokens` tokens, and the answer is cut
        here: without it they learn the answer's length, and one that sends wrong shares may learn more from when it ends.
        cancellation: lets another thread end the generation at once, which then raises `Cancelled`.

        A token on whose way a value left its range is neither returned nor given to `on_token`: see `GenerationResult`.

        Raises `ConfigurationError` for a bad argument before anything is sent; `PeerError` and what parties report later;
        `WrongOutput` after a session in which shares did not add up to a token.
        """
        temperature = check_decoding(decoding, temperature, top_k, top_p)
        if adjust is not None and decoding != "logits":
            raise ConfigurationError(f"adjust needs decoding 'logits' (this client then learns logits), not '{decoding}'")
        if not len(prompt_ids):
            raise ConfigurationError("the prompt is empty; give at least one token")
        agreed = temperature if decoding == "sample" else None  # another one is this client's own affair
        plan = GenerationPlan(len(prompt_ids), new_tokens, decoding, policy, agreed)
        reference = model if isinstance(model, ModelReference) else self.find_model(model)
        plan.check(reference.architecture)
        _check_prompt(prompt_ids, reference.architecture)
        suite_class(suite)
        manifest = Manifest(
            protocol=PROTOCOL_VERSION,
            version=self.version,
            model=reference.id,
            architecture=architecture_hash(reference.architecture),
            suite=suite,
            fraction_bits=SUITES[suite][2] if fraction_bits is None else fraction_bits,
            options=reference.options(suite, options),
            prompt_tokens=len(prompt_ids),
            new_tokens=new_tokens,
            decoding=decoding,
            temperature=agreed,
            policy=policy,
            parties=self.config.party_names,
        )
        stops = frozenset(reference.architecture.eos if stop_ids is None else stop_ids)
        wanted = Wanted(
            manifest, list(prompt_ids), reference.architecture, temperature, top_k, top_p, stops, adjust, fixed_length
        )
        cancellation = cancellation or Cancellation()
        with self._connected(lambda reason: on_progress(f"waiting for {reason}", 0, 0), cancellation.check) as channels:
            heartbeats = HeartbeatMonitor(
                self.config.deadline_seconds, self.config.step_seconds, lambda: self.identity.revoked
            )
            try:
                session = ClientSession(new_id(), self.config, wanted, on_token, on_progress)
                cancellation.watch(session)
                session.run(channels, heartbeats, lambda: self.identity)
            finally:
                heartbeats.stop()
        return GenerationResult(
            tokens=session.tokens,
            costs=session.costs,
            seconds=session.seconds,
            token_seconds=session.token_seconds,
            session=session.id,
            finish_reason=session.finish_reason,
            findings=session.findings,
            logits=session.all_logits(),
        )


def _check_prompt(prompt_ids: Sequence[int], architecture: Architecture) -> None:
    for place, token in enumerate(prompt_ids):
        if not 0 <= token < architecture.vocabulary:
            raise ConfigurationError(
                f"prompt token number {place + 1} lies outside the model's vocabulary of {architecture.vocabulary} tokens; "
                "tokenizer and model must belong together"
            )


def check_decoding(decoding: Decoding, temperature: float | None, top_k: int | None, top_p: float | None) -> float | None:
    """The temperature that applies, None for the most likely token."""
    check_filters(top_k, top_p)
    if decoding != "logits" and (top_k is not None or top_p is not None):
        raise ConfigurationError(
            f"top_k and top_p need decoding 'logits' (this client then learns logits), not '{decoding}'"
        )
    if decoding == "greedy" and temperature is not None:
        raise ConfigurationError("temperature needs decoding 'sample' or 'logits', not 'greedy'")
    if decoding == "logits" and temperature is None and (top_k is not None or top_p is not None):
        raise ConfigurationError("top_k and top_p need a temperature")
    if decoding == "sample" and temperature is None:
        return 1.0
    return None if temperature is None else check_temperature(temperature)
