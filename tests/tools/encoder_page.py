"""This project's rows in docs/encoders.md, as the estimate gives them: `python -m tests.tools.encoder_page [--check]`.

--check: exit with 1 where the page says something else, and write nothing.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mpcache import Setting, estimate

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
ROWS = {
    "suite `masked`": Setting("masked"),
    "suite `masked`, `prefer=rounds`": Setting("masked", options={"prefer": "rounds"}),
    "suite `masked`, three": Setting("masked", parties=3),
    "suite `crypten`": Setting("crypten"),
}


def row(title: str, setting: Setting) -> str:
    """A system's line: bytes sent by all parties together, and dealt."""
    costs = estimate("bert-base", 128, setting=setting).session
    sent, dealt = setting.parties * costs.bytes_sent / 1e9, costs.offline_bytes / 1e9
    rounds = f"{costs.rounds:,}".replace(",", " ")
    return f"| {title} | {setting.parties} and a dealer | {rounds} | {sent:.2f} GB | {dealt:.2f} GB | weights secret |"


def shorter() -> str:
    """The sentence about shorter texts."""
    bert, minilm = (estimate(model, 32).session for model in ("bert-base", "minilm-l6"))
    return (
        f"Padded to 32 tokens, BERT-base sends {bert.bytes_sent / 1e6:.0f} MB a party and is dealt "
        f"{bert.offline_bytes / 1e6:.0f} MB, in {bert.rounds} rounds; a sentence of 32 tokens through\n"
        f"all-MiniLM-L6-v2 takes {minilm.rounds} rounds, {minilm.bytes_sent / 1e6:.1f} MB sent by a party and "
        f"{minilm.offline_bytes / 1e6:.1f} MB dealt."
    )


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    made = text
    for title, setting in ROWS.items():
        made = re.sub(rf"^\| {re.escape(title)} \|.*$", row(title, setting), made, flags=re.M)
    made = re.sub(r"^Padded to 32 tokens.*\n.*$", shorter(), made, flags=re.M)
    if "--check" in sys.argv:
        print("as the page says" if made == text else f"{PAGE} is out of date: python -m tests.tools.encoder_page")
        return int(made != text)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
