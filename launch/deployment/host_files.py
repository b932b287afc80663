"""How a role runs on its host: a systemd unit, a container, and the next commands in a few lines."""

from __future__ import annotations

from typing import Any

import yaml

from launch.deployment.plan import Member, Plan

CRYPTEN = "crypten==0.4.1"
PACKAGES = ("mpcache", "mpc", "parties", "protocols", "models", "launch")
SERVES = ("party", "dealer")


def unit_text(plan: Plan, member: Member) -> str:
    """Return the systemd unit of a party or dealer."""
    folder = plan.prefix / member.name
    low_port = member.port is not None and member.port < 1024
    capability = "AmbientCapabilities=CAP_NET_BIND_SERVICE\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE" if low_port else ""
    return f"""\
[Unit]
Description=mpcache {member.role} {member.name}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User=mpcache
WorkingDirectory={folder}
ExecStart={plan.prefix}/venv/bin/mpcache {member.role} --config {folder}/{member.name}.yaml
Restart=on-failure
RestartSec=5
# SIGTERM ends a server in good order; one that has not started yet exits with 143.
SuccessExitStatus=143
TimeoutStopSec=60
# Shares and keys must not reach a core dump or another user's files.
LimitCORE=0
UMask=0077
ProtectSystem=strict
ReadWritePaths={folder}
ProtectHome=yes
PrivateTmp=yes
NoNewPrivileges=yes
{capability or "CapabilityBoundingSet="}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""


def dockerfile_text() -> str:
    """Return the image of any role, built from a checkout of mpcache that is given as the build context `mpcache`."""
    copies = "\n".join(f"COPY --from=mpcache {package} ./{package}" for package in PACKAGES)
    return f"""\
# Built by `docker compose build`, which gives a checkout of mpcache as the context `mpcache`.
FROM python:3.12-slim
# PyTorch for the CPU; for CUDA, say https://download.pytorch.org/whl/cu130 or the index of your version.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY --from=mpcache pyproject.toml constraints.txt README.md LICENSE ./
{copies}
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" . \\
    && pip install --no-cache-dir --no-deps {CRYPTEN} \\
    && rm -rf /source
WORKDIR /role
ENV HOME=/tmp
ENTRYPOINT ["mpcache"]
"""


def compose_text(member: Member) -> str:
    """Return the compose file of a role. The role's folder is the only thing of the host that the container sees."""
    service: dict[str, Any] = {
        "build": {
            "context": ".",
            "additional_contexts": {"mpcache": "${MPCACHE_SOURCE:?set MPCACHE_SOURCE to a checkout of mpcache}"},
        },
        "image": "mpcache",
        "user": "${MPCACHE_USER:?set MPCACHE_USER to UID:GID of the owner of this folder}",
        "command": [member.role, "--config", f"{member.name}.yaml"],
        "volumes": [".:/role"],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ulimits": {"core": 0},
        "init": True,
    }
    if member.role in SERVES:
        service |= {"ports": [f"{member.port}:{member.port}"], "restart": "unless-stopped", "stop_grace_period": "60s"}
    else:
        service["profiles"] = ["command"]  # run by hand: docker compose run --rm NAME ...
    head = "# MPCACHE_SOURCE=/path/to/mpcache MPCACHE_USER=$(id -u):$(id -g) docker compose "
    head += "up --build\n" if member.role in SERVES else f"run --build --rm {member.name}\n"
    return head + yaml.safe_dump({"services": {member.name: service}}, sort_keys=False)


def role_readme(plan: Plan, member: Member) -> str:
    """Return the page with the next commands on the role's host."""
    name, config = member.name, f"{member.name}.yaml"
    use = {
        "party": f"    mpcache party --config {config}",
        "dealer": f"    mpcache dealer --config {config}",
        "client": f"    mpcache client --config {config}\n"
        f"    mpcache generate --config {config} --model CHECKPOINT --prompt-file question.txt\n"
        f"    mpcache serve --config {config} --tokenizer CHECKPOINT      # programs that speak OpenAI's API",
        "model-owner": f"    mpcache model-owner --config {config} --model CHECKPOINT",
    }[member.role]
    start = "Start it; the order among the hosts does not matter" if member.role in SERVES else "Use it"
    text = f"""\
# {name} ({member.role})

Run these in this folder, on the host of {name}. `{config}` has all settings, each with its meaning.
{_identity_text(plan, member)}
{start}:

{use}

Does everybody answer?

    mpcache status --config {config}
"""
    if member.role in SERVES:
        text += f"""
As a service, with this folder at {plan.prefix / name} and the program in {plan.prefix}/venv, both of user `mpcache`:

    sudo cp mpcache-{name}.service /etc/systemd/system/
    sudo systemctl enable --now mpcache-{name}
    journalctl -fu mpcache-{name}

Or in a container: see the first line of compose.yaml.
"""
    return (
        text
        + f"\nBefore the certificate ends: mpcache certs renew --keep-key --config {config}, have the request signed in\n"
        + f"the authority's folder, mpcache certs install --config {config} {name}.crt. No restart.\n"
        + f"A key that may be stolen: mpcache certs revoke --config {config} FINGERPRINT, likewise at every other role.\n"
    )


def _identity_text(plan: Plan, member: Member) -> str:
    """Say how the role gets its key, its certificate and its peers' fingerprints."""
    name, config = member.name, f"{member.name}.yaml"
    if plan.one_owner:
        return (
            "Its private key, its certificate and its peers' fingerprints are here: only this host may have this folder.\n"
        )
    return f"""
1. A private key, which stays here, the request for its certificate, and the key's fingerprint:

    mpcache certs request --config {config}
    mpcache certs fingerprint --config {config}

2. Send certificates/requests/{name}.csr to the authority's host, and read the fingerprint out to the authority, which signs
nothing without it. With the {name}.crt that comes back:

    mpcache certs install --config {config} {name}.crt

3. {_pins_text(plan, member)}
"""


def _pins_text(plan: Plan, member: Member) -> str:
    """Say how the peers' fingerprints get into the role's file."""
    if plan.trust_authority:
        return (
            "This file trusts the authority (insecure_trust_authority): no fingerprints are needed. Whoever has the\n"
            "authority's key can read what this role's peers may read."
        )
    peers = plan.members if member.role == "party" else plan.parties
    items = " ".join(f"{one.name}=FINGERPRINT" for one in peers if one.name != member.name)
    return f"""\
Ask the owners of the other roles for the fingerprints that their hosts show: over another way than the authority, which
could name keys of its own. Then

    mpcache certs pin --config {member.name}.yaml {items}

(or a file of lines NAME FINGERPRINT). Nothing starts before: the authority only introduces."""


def authority_readme(plan: Plan) -> str:
    """Return the page with the next commands on the authority's host."""
    names = " ".join(f"{member.name}.csr" for member in plan.members)
    return f"""\
# The authority

authority.key can make an identity of any name of this deployment: keep this folder off the hosts of all roles, best on one
that is offline. Roles compare each other's keys by fingerprint, so the authority alone can take nobody's place.
deployment.yaml says whose requests are signed, as which role, and which hosts their certificates name.

Put the requests into this folder, and in it run

    mpcache certs sign --authority . {names}

(one or several at a time). Each is signed only with the fingerprint that `mpcache certs fingerprint` shows on the role's
host: typed when you are asked, or given, --fingerprint NAME=F or a file of lines NAME F. Send each NAME.crt back to its
host. issued/ keeps a copy of every certificate.
"""


def deployment_readme(plan: Plan) -> str:
    """Return the page that says which folder goes where."""
    lines = [f"    {m.name + '/':<24}{m.role:<14}{m.host or 'its own host'}" for m in plan.members]
    folders = "\n".join(lines)
    secrets = "None holds a secret but authority/, which belongs on no role's host."
    then = "Then follow the README.md in each."
    if plan.one_owner:
        secrets = "Each holds the private key of its role, authority/\nthe key that certifies further names."
        then = "All roles have one owner: their keys are made, and each has its peers' fingerprints. Start them."
    return f"""\
# A deployment of mpcache

Copy each folder to the host of its role. {secrets}

{folders}
    {"authority/":<24}{"":<14}a host of its own

{then}
"""
