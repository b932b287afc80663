"""What a server grants a session, by what the session is predicted to cost (`models.costs.prediction`).

A client chooses lengths, policy and options, and some choices cost a thousand times what others do. So every server predicts
what a session would cost before the session takes a place, and refuses what is beyond its limits. Predicting costs time as
well: a prediction is kept for all sessions of like lengths, no prediction takes longer than `max_prediction_seconds`, one
runs at a time, and each client has some seconds for the predictions that it causes, which come back slowly.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable

from models.architectures import AnyArchitecture
from models.costs.prediction import Prediction, PredictionTooLong, Predictor
from models.costs.tracing import Setting
from mpc.errors import ConfigurationError
from parties.config.grants import COSTS
from parties.errors import Busy
from parties.server.permissions import Permissions
from parties.wire.manifest import Manifest
from protocols.gumbel import HIGHEST_TEMPERATURE

KEPT = 64  # models, suites, policies and options whose predictions are kept
ALLOWANCE_SECONDS = 120.0  # of predicting, for each client
FORGOTTEN_SECONDS = 600.0  # after which a prediction that took too long is tried again
REFILL = 0.1  # of them that come back each second
WHAT = {
    "max_token_dealt_bytes": "bytes of dealt randomness for one token",
    "max_token_sent_bytes": "bytes sent by a party for one token",
    "max_dealt_bytes": "bytes of dealt randomness",
    "max_sent_bytes": "bytes sent by a party",
}


class Allowances:
    """Seconds that clients may still have computed for them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # seconds, at a time

    def left(self, client: str) -> float:
        """Return the seconds of predicting that the client has now."""
        now = self._clock()
        seconds, then = self._left.get(client, (ALLOWANCE_SECONDS, now))
        return min(ALLOWANCE_SECONDS, seconds + REFILL * (now - then))

    def spend(self, client: str, seconds: float) -> None:
        """Take so many seconds from the client's."""
        self._left[client] = (self.left(client) - seconds, self._clock())


class Costs:
    """The cost limits of one server."""

    def __init__(self, server: str, permissions: Permissions, max_seconds: float) -> None:
        self._server = server
        self._permissions = permissions
        self._max_seconds = max_seconds
        self._lock = threading.Lock()  # of the two below
        self._predictors: OrderedDict[tuple[str, ...], Predictor] = OrderedDict()
        self._too_long: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._allowances = Allowances()
        self._own_turn: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._turn = threading.Lock()

    def known(self, manifest: Manifest, architecture: AnyArchitecture) -> bool:
        """Whether `check` answers at once."""
        predictor = self._predictor(manifest, architecture)
        return predictor.known(manifest.prompt_tokens, manifest.new_tokens) or self._was_too_long(manifest)

    def check(self, manifest: Manifest, architecture: AnyArchitecture, client: str) -> Prediction:
        """Predict a session, compare with the limits, and return what was predicted.

        Raises `ConfigurationError` naming the setting, the value predicted and the limit, or that nothing could be
        predicted in time; `Busy` when the client has used up its time for predictions.
        """
        prediction = self._predict(manifest, architecture, client)
        values = {
            "max_token_dealt_bytes": prediction.dealt_each,
            "max_token_sent_bytes": prediction.sent_each,
            "max_dealt_bytes": prediction.dealt,
            "max_sent_bytes": prediction.sent,
        }
        for setting in COSTS:
            limit, where = self._permissions.cost(setting, client)
            if limit is not None and values[setting] > limit:
                raise ConfigurationError(
                    f"the session would take about {values[setting]:,} {WHAT[setting]} (predicted for policy "
                    f"'{manifest.policy}', suite '{manifest.suite}', {manifest.prompt_tokens} prompt and "
                    f"{manifest.new_tokens} new tokens), {self._server} allows {limit:,}: shorten it, choose another "
                    f"policy or other options, or raise '{setting}' in {where}"
                )
        return prediction

    def check_token(self, dealt: int, client: str) -> None:
        """Raise `ConfigurationError` when more has been dealt for one token than the client is allowed, whatever was
        predicted. For the dealer."""
        limit, where = self._permissions.cost("max_token_dealt_bytes", client)
        if limit is not None and dealt > limit:
            raise ConfigurationError(
                f"{self._server} has dealt {dealt:,} bytes for one token, it allows {limit:,}: choose another policy or "
                f"other options, or raise 'max_token_dealt_bytes' in {where}"
            )

    # ---- predictions -------------------------------------------------------------------------------------------------
    def _key(self, manifest: Manifest, lengths: bool = False) -> tuple[str, ...]:
        options = json.dumps(manifest.options, sort_keys=True)
        parts = (
            manifest.architecture,
            manifest.suite,
            str(manifest.fraction_bits),
            options,
            manifest.policy,
            manifest.decoding,
            str(manifest.draft),
            str(manifest.prefix_tokens),
            str((manifest.chunk_tokens, manifest.chunk_again, manifest.chunk_slots)),
            str(manifest.text_tokens),
            str(manifest.padded),
        )
        sizes = (str(manifest.prompt_tokens), str(manifest.new_tokens)) if lengths else ()
        return (*parts, str(len(manifest.parties)), *sizes)

    def _predictor(self, manifest: Manifest, architecture: AnyArchitecture) -> Predictor:
        key = self._key(manifest)
        with self._lock:
            if key not in self._predictors:
                options = {**manifest.options, "fraction_bits": manifest.fraction_bits}
                hottest = HIGHEST_TEMPERATURE if manifest.decoding == "sample" else None  # no other one costs more
                parties = len(manifest.parties)
                draft = manifest.plan.draft
                setting = Setting(
                    manifest.suite,
                    parties,
                    manifest.policy,
                    options,
                    manifest.decoding,
                    hottest,
                    draft,
                    manifest.prefix_tokens,
                    manifest.plan.chunks,
                    tuple(manifest.text_tokens),
                    padded=manifest.padded,
                )
                self._predictors[key] = Predictor(architecture, setting)
                while len(self._predictors) > KEPT:
                    self._predictors.popitem(last=False)
            self._predictors.move_to_end(key)
            return self._predictors[key]

    def _predict(self, manifest: Manifest, architecture: AnyArchitecture, client: str) -> Prediction:
        predictor = self._predictor(manifest, architecture)
        prompt, new = manifest.prompt_tokens, manifest.new_tokens
        if predictor.known(prompt, new):
            return predictor.predict(prompt, new, self._max_seconds)
        with self._own_turn[client], self._turn:
            if self._was_too_long(manifest):
                raise self._given_up(manifest)
            if (left := self._allowances.left(client)) <= 0:
                raise Busy(
                    f"{self._server} has predicted the costs of many different sessions of '{client}': ask for what was "
                    f"asked for before, or try again in {-left / REFILL + 1:.0f} s"
                )
            began = time.perf_counter()
            try:
                return predictor.predict(prompt, new, self._max_seconds)
            except PredictionTooLong:
                self._too_long[self._key(manifest, True)] = time.monotonic() + FORGOTTEN_SECONDS
                while len(self._too_long) > KEPT:
                    self._too_long.popitem(last=False)
                raise self._given_up(manifest) from None
            finally:
                self._allowances.spend(client, time.perf_counter() - began)

    def _was_too_long(self, manifest: Manifest) -> bool:
        """Whether a prediction took too long not long ago: a machine that was busy then may have time now."""
        return self._too_long.get(self._key(manifest, True), 0.0) > time.monotonic()

    def _given_up(self, manifest: Manifest) -> ConfigurationError:
        return ConfigurationError(
            f"{self._server} cannot predict within {self._max_seconds:g} s what {manifest.prompt_tokens} prompt and "
            f"{manifest.new_tokens} new tokens cost with policy '{manifest.policy}' and suite '{manifest.suite}': shorten "
            "the prompt, choose a simpler policy, or raise 'max_prediction_seconds' in its 'limits'"
        )
