"""Tapes in a party's `store ls`, `verify` and `gc`: what there is, what is damaged, and what nothing will use."""

from __future__ import annotations

import shutil
from pathlib import Path

from parties.party.store_check import collect, verify
from parties.party.tape_check import tape_entries
from parties.tapes.journal import Journal
from tests.parties import tape_folders as tapes
from tests.parties.deployment import Deployment


def test_tapes_are_listed_verified_and_collected(tmp_path: Path, checkpoint: Path) -> None:
    deployment = Deployment(tmp_path / "deployment")
    tapes.deal_toy(deployment, checkpoint, tmp_path / "out", sessions=3)
    root = tmp_path / "out" / "party1"
    config = deployment.config("party", "party1").model_copy(update={"tapes": root})
    found = tape_entries(config)
    assert sorted(one.name.split(" (")[0] for one in found) == [
        *["a prompt of 5 and up to 4 new tokens"] * 3,
        "masks of weights",
    ]
    assert [verify(one) for one in found] == [""] * 4
    assert not any(one.needless for one in found)
    assert sum(one.size for one in found) == sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    damaged, used, good = tapes.session_tapes(folder)
    file = folder / f"{damaged}.tape"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (folder / f"{good}.seed").unlink()
    with Journal(root / "journal", "party1").locked() as records:
        records.take(used, "1" * 32, folder.name, tapes.STORING)
    by_id = {one.id: one for one in tape_entries(config)}
    assert "is not what the dealer dealt" in verify(by_id[damaged])
    assert f"{good}.seed is missing" in verify(by_id[good])
    assert by_id[used].needless == f"was used by session {'1' * 32}; a crash left it"
    store = tmp_path / "store"
    (store / "pages").mkdir(parents=True)
    collect(store, "party1", [one for one in by_id.values() if one.needless])
    assert not list(folder.glob(f"{used}.*"))
    for tape in (damaged, good):
        for file in folder.glob(f"{tape}.*"):
            file.unlink()
    (load,) = tape_entries(config)
    assert load.needless == "no session's tape of its deal is left"
    shutil.rmtree(root)
    assert tape_entries(config) == []
