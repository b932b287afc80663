"""`mpcache party`: a compute party: holds shares of models and computes on them."""

from __future__ import annotations

from launch import supervision
from launch.options import ConfigOption, SupervisedOption, TrustAuthorityOption


def run(
    config: ConfigOption, insecure_trust_authority: TrustAuthorityOption = False, supervised: SupervisedOption = False
) -> None:
    """Run a compute party until SIGTERM or Ctrl-C."""
    if supervised:
        supervision.end_with_parent()
    from launch.serving import load_role, serve
    from parties.compute_party import ComputePartyServer

    settings = load_role(config, "party", insecure_trust_authority)
    serve(ComputePartyServer(settings), settings, supervised)
