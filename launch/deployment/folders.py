"""Writes the folders of a new deployment, all of them or none."""

from __future__ import annotations

import shutil
from pathlib import Path
from secrets import token_hex

from launch.deployment.config_file import config_text
from launch.deployment.host_files import (
    SERVES,
    authority_readme,
    compose_text,
    deployment_readme,
    dockerfile_text,
    role_readme,
    unit_text,
)
from launch.deployment.pins import pin
from launch.deployment.plan import Member, Plan
from mpc.errors import ConfigurationError
from parties.config.role_config import load_config
from parties.identity import authority
from parties.identity.certificates import create_authority
from parties.identity.requests import create_request, install
from parties.names import AUTHORITY


def write_deployment(plan: Plan, target: Path, authority_days: float) -> None:
    """Write all folders to `target`. Raises `ConfigurationError`, and writes nothing, when there is something already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"--out {target} is there already: nothing is overwritten; name a new folder, or remove it")
    draft = target.with_name(f".{target.name}.{token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
        _write_authority(plan, draft / AUTHORITY, authority_days)
        for member in plan.members:
            _write_role(plan, member, draft)
        if plan.one_owner:
            _write_identities(plan, draft)
        _text(draft / "README.md", deployment_readme(plan))
        draft.replace(target)
    except OSError as error:
        raise ConfigurationError(f"--out {target} cannot be written: {error.strerror}; name a folder that can") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_authority(plan: Plan, folder: Path, days: float) -> None:
    create_authority(folder, days)
    members = [
        authority.Member(name=m.name, role=m.role, hosts=[] if m.host in (None, m.name) else [str(m.host)])
        for m in plan.members
    ]
    authority.write_record(folder, authority.Record(members=members))
    _text(folder / "README.md", authority_readme(plan))


def _write_role(plan: Plan, member: Member, draft: Path) -> None:
    folder = draft / member.name
    certificates = folder / "certificates"
    certificates.mkdir(parents=True, mode=0o700)
    shutil.copyfile(draft / AUTHORITY / f"{AUTHORITY}.crt", certificates / f"{AUTHORITY}.crt")
    config = folder / f"{member.name}.yaml"
    _text(config, config_text(plan, member))
    load_config(config)
    if member.role in SERVES:
        _text(folder / f"mpcache-{member.name}.service", unit_text(plan, member))
    _text(folder / "Dockerfile", dockerfile_text())
    _text(folder / "compose.yaml", compose_text(member))
    _text(folder / ".dockerignore", "*\n")
    _text(folder / "README.md", role_readme(plan, member))


def _write_identities(plan: Plan, draft: Path) -> None:
    """Make every role's key, have it certified, and write all fingerprints into the files of the roles that list them."""
    marks = {}
    for member in plan.members:
        folder = draft / member.name / "certificates"
        request, mark = create_request(folder, member.name)
        answer, _ = authority.sign_request(draft / AUTHORITY, request, mark)
        install(folder, member.name, answer, role=member.role)
        shutil.rmtree(request.parent)
        marks[member.name] = (mark,)
    for member in plan.members:
        pin(draft / member.name / f"{member.name}.yaml", marks, keep=False)


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
