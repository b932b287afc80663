"""Somebody takes two roles at once, and would see what neither may see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from mpc.errors import MpcacheError
from parties.client.client import Client
from parties.identity.authority import Member, Record, sign_request, write_record
from parties.identity.requests import create_request
from tests.parties.deployment import Deployment
from tests.parties.toy import Toy
from tests.tools.attack.calls import describe
from tests.tools.attack.contract import Verdict


class OverlappingRoles:
    """Caught: by the configuration, by the authority, by a role's own start, and by who is called."""

    name: ClassVar[str] = "overlapping-roles"
    who: ClassVar[str] = "a party, a dealer or a client"
    what: ClassVar[str] = "takes a second role with its name, its key or its certificate"

    def run(self, folder: Path) -> Verdict:
        """One attempt each way; each must end with an error."""
        with Deployment(folder / "deployment", 2, Toy().program) as deployment:
            certificates = deployment.certificates
            stranger = deployment.fingerprints["stranger"]
            other = [{"name": "dealer-2", "fingerprint": stranger}]

            def second_name() -> None:
                file, mark = create_request(folder / "host", "party1")
                members = [Member(name="party1", role="party"), Member(name="client", role="client")]
                write_record(deployment.authority, Record(members=members))
                sign_request(deployment.authority, file, mark)
                (folder / "host" / "requests" / "party1.key").rename(folder / "host" / "requests" / "client.key")
                sign_request(deployment.authority, *create_request(folder / "host", "client"))

            def with_authority() -> None:
                host = folder / "both"
                host.mkdir()
                for file in (*certificates.glob("client.*"), *deployment.authority.glob("authority.*")):
                    (host / file.name).write_bytes(file.read_bytes())
                    (host / file.name).chmod(0o600)
                Client(deployment.config("client", "client", certificates=host))

            attempts: dict[str, Callable[[], object]] = {
                "one name, party and client": lambda: deployment.config("party", "party0", clients=["party1"]),
                "one name, dealer and model owner": lambda: deployment.config("party", "party0", model_owners=["dealer"]),
                "one key, two names": lambda: deployment.config("party", "party0", clients=["stranger"], model_owners=other),
                "one key, two certificates": second_name,
                "the authority is a client": with_authority,
                "a model owner's certificate as a client's": lambda: Client(
                    deployment.config("client", "owner", model_owners=[])
                ),
                "a model owner that a server lists as a client": lambda: _listed_as_client(deployment, folder),
            }
            said = {what: _error(work) for what, work in attempts.items()}
        passed = [what for what, text in said.items() if text is None]
        return Verdict(not passed, next(text for text in said.values() if text), f"succeeded: {', '.join(passed) or 'none'}")


def _listed_as_client(deployment: Deployment, folder: Path) -> object:
    """A server lists the model owner, with its right key, as a client: the certificate still says what it is."""
    grants = [{"name": "owner", "fingerprint": deployment.fingerprints["owner"]}]
    deployment.servers.pop("party0").stop()
    deployment.start_one("party0", clients=grants, model_owners=[])
    return describe(deployment, "owner", "party0")


def _error(work: Callable[[], object]) -> str | None:
    try:
        work()
    except MpcacheError as error:
        return str(error)
    return None
