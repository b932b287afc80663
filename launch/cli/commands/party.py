"""`mpcache party`: a compute party: holds shares of models and computes on them."""

from __future__ import annotations

from launch.cli.options import ConfigOption, SupervisedOption, TrustAuthorityOption
from launch.local import supervision


def run(
    config: ConfigOption, insecure_trust_authority: TrustAuthorityOption = False, supervised: SupervisedOption = False
) -> None:
    """Run a compute party until SIGTERM or Ctrl-C."""
    if supervised:
        supervision.end_with_parent()
    from launch.serve.roles import load_role, serve
    from parties.party.compute_party import ComputePartyServer

    settings = load_role(config, "party", insecure_trust_authority)
    serve(ComputePartyServer(settings), settings, supervised)
