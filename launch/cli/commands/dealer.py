"""`mpcache dealer`: the dealer: makes correlated randomness for each session, sees no data."""

from __future__ import annotations

from launch.cli.options import ConfigOption, SupervisedOption, TrustAuthorityOption
from launch.local import supervision


def run(
    config: ConfigOption, insecure_trust_authority: TrustAuthorityOption = False, supervised: SupervisedOption = False
) -> None:
    """Run the dealer until SIGTERM or Ctrl-C."""
    supervision.begin("dealer", supervised)
    from launch.serve.roles import load_role, serve
    from parties.dealer.dealer import DealerServer

    settings = load_role(config, "dealer", insecure_trust_authority)
    serve(DealerServer(settings), settings, supervised)
