"""All attacks, in the order in which they run."""

from __future__ import annotations

from tests.tools.attack.contract import Attack
from tests.tools.attack.gateway_without_key import GatewayWithoutKey
from tests.tools.attack.minted_client import MintedClient
from tests.tools.attack.minted_party import MintedParty
from tests.tools.attack.minted_relay import RelayWithMintedCertificates
from tests.tools.attack.overlapping_roles import OverlappingRoles
from tests.tools.attack.revoked_client import RevokedClient

ATTACKS: tuple[Attack, ...] = (
    MintedParty(),
    MintedClient(),
    RelayWithMintedCertificates(),
    OverlappingRoles(),
    RevokedClient(),
    GatewayWithoutKey(),
)
