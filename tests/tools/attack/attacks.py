"""All attacks, in the order in which they run."""

from __future__ import annotations

from tests.tools.attack.contract import Attack
from tests.tools.attack.costly_policy import CostlyPolicy
from tests.tools.attack.cut_bits import CutBitsOfOutputs
from tests.tools.attack.damaged_share import DamagedShare
from tests.tools.attack.gateway_without_key import GatewayWithoutKey
from tests.tools.attack.idle_streams import IdleStreams
from tests.tools.attack.logits_without_grant import LogitsWithoutGrant
from tests.tools.attack.minted_client import MintedClient
from tests.tools.attack.minted_party import MintedParty
from tests.tools.attack.minted_relay import RelayWithMintedCertificates
from tests.tools.attack.model_id_reused import ModelIdReused
from tests.tools.attack.noise_by_client import NoiseChosenByClient
from tests.tools.attack.option_sets import OptionSets
from tests.tools.attack.overlapping_roles import OverlappingRoles
from tests.tools.attack.revoked_client import RevokedClient
from tests.tools.attack.scaled_prompt_row import ScaledPromptRow
from tests.tools.attack.shifted_share import ShiftedOutputShare
from tests.tools.attack.two_clients_one_session import TwoClientsOneSession

ATTACKS: tuple[Attack, ...] = (
    NoiseChosenByClient(),
    LogitsWithoutGrant(),
    ScaledPromptRow(),
    MintedParty(),
    MintedClient(),
    RelayWithMintedCertificates(),
    OverlappingRoles(),
    RevokedClient(),
    GatewayWithoutKey(),
    IdleStreams(),
    CostlyPolicy(),
    OptionSets(),
    CutBitsOfOutputs(),
    TwoClientsOneSession(),
    ModelIdReused(),
    DamagedShare(),
    ShiftedOutputShare(),
)
