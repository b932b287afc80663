"""All attacks, in the order in which they run."""

from __future__ import annotations

from tests.tools.attack.contract import Attack
from tests.tools.attack.cut_bits import CutBitsOfOutputs
from tests.tools.attack.logits_without_grant import LogitsWithoutGrant
from tests.tools.attack.noise_by_client import NoiseChosenByClient
from tests.tools.attack.shifted_share import ShiftedOutputShare

ATTACKS: tuple[Attack, ...] = (
    NoiseChosenByClient(),
    LogitsWithoutGrant(),
    CutBitsOfOutputs(),
    ShiftedOutputShare(),
)
