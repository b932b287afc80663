"""A role's configuration file with every key that the role has, each under its description.

Keys, descriptions and defaults are those of `parties.config.role_config.RoleConfig`: there is no second list of them.
"""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launch.deployment.plan import Member, Plan
from parties.config.role_config import RoleConfig
from parties.names import Role

WIDTH = 100


def config_text(plan: Plan, member: Member) -> str:
    """Return the YAML file of one role."""
    head = f"# Configuration of {member.name} ({member.role}). Keys behind a # have the value that is shown; an unknown key"
    return "\n".join([head, "# is an error.", "", *_lines(RoleConfig, member.role, _values(plan, member)), ""])


def _values(plan: Plan, member: Member) -> dict[str, Any]:
    values: dict[str, Any] = {
        "role": member.role,
        "name": member.name,
        "parties": [{"name": p.name, "address": p.address} for p in plan.parties],
        "certificates": "certificates",
    }
    if plan.trust_authority:
        values["insecure_trust_authority"] = True
    if member.listen is not None:
        values["listen"] = member.listen
    if member.role == "party":
        values |= {
            "dealer": {"name": plan.dealer.name, "address": plan.dealer.address},
            "clients": [c.name for c in plan.clients],
            "model_owners": [o.name for o in plan.model_owners],
            "store": "model-shares",
        }
    return values


def applies(info: FieldInfo, role: Role) -> bool:
    """Return whether a role uses a key."""
    extra = info.json_schema_extra
    roles = extra.get("roles") if isinstance(extra, dict) else None
    return not isinstance(roles, list) or role in roles


def _lines(model: type[BaseModel], role: Role, values: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, info in model.model_fields.items():
        if not applies(info, role):
            continue
        lines += textwrap.wrap(info.description or "", WIDTH, initial_indent="# ", subsequent_indent="# ")
        default = info.get_default(call_default_factory=True)
        if key in values:
            lines += _dump(key, values[key])
        elif isinstance(default, BaseModel):
            lines.append(f"# {key}:")
            lines += [f"#   {line}".rstrip() for line in _lines(type(default), role, {})]
        else:
            lines += [f"# {line}" for line in _dump(key, default)]
        lines.append("")
    return lines[:-1]


def _dump(key: str, value: Any) -> list[str]:
    return yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True).splitlines()
