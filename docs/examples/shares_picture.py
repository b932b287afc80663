# The picture of the README: a prompt in plaintext, and what two compute parties hold of it. Run it to draw
# docs/shares.png again:
#
#     python docs/examples/shares_picture.py [FILE]
#
# The values are the rows of the shipped model's token table for a prompt, in fixed point with 14 fraction bits. The
# shares are made as client and model owner make them: uniform in Z_2^64, with a fresh seed of the operating system at
# every run.

# %%
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import models.recall
from launch.local.shares import encoded_shares
from models.checkpoint import load_checkpoint
from models.tokenizer.text import TextTokenizer
from mpc.fixed_point import decode, encode

MODEL = Path(models.recall.__file__).parent / "llama"
PROMPT = "Codes . Kepler : 0 4 5 1 ; Curie : 9 3 2 7 ; Bohr : 5 5 1 8 . ? Curie :"
FRACTION_BITS = 14
CHANNELS = 32
HALF = 2.0**63
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#4D4D4D"  # Okabe and Ito's; the hatches say the same in greyscale


# %%
def prompt_rows() -> tuple[list[str], Tensor]:
    """Return the prompt's tokens, and their float rows [T, C] in the shipped model's token table."""
    tokenizer = TextTokenizer.load(MODEL, ())
    ids = tokenizer.encode(PROMPT)
    return [tokenizer.decode([one]).strip() for one in ids], load_checkpoint(MODEL).weights["embedding.tokens"][ids].double()


def draw(panel: Any, values: Tensor, most: float, title: str) -> None:
    """Draw a map of the values, white to black, with the title above."""
    panel.imshow(values, cmap="cividis", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    panel.set_title(title, fontsize=10)
    panel.set_xticks([])
    panel.set_yticks([])


def histogram(panel: Any, values: Tensor, most: float, color: str, says: str) -> None:
    """Draw how often values between -most and most come, with a sentence on what it says."""
    panel.hist(values.flatten().numpy(), bins=24, range=(-most, most), color=color, edgecolor="white", linewidth=0.5)
    panel.set_yticks([])
    panel.set_xticks([-most, 0, most], [f"{-most:g}", "0", f"{most:g}"] if most < HALF else ["$-2^{63}$", "0", "$2^{63}$"])
    panel.tick_params(labelsize=8)
    panel.set_xlabel(says, fontsize=9)
    for side in ("left", "right", "top"):
        panel.spines[side].set_visible(False)


# %%
def picture(file: Path) -> None:
    """Write the picture. The sum of the shares in the ring is checked to be the plaintext."""
    tokens, rows = prompt_rows()
    first, second = encoded_shares(rows, FRACTION_BITS, parties=2)
    assert torch.equal(first + second, encode(rows, FRACTION_BITS))
    most = 0.15
    figure = Figure(figsize=(9.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    (above, below) = figure.subplots(2, 4, height_ratios=[3.4, 1])
    plain = rows[:, :CHANNELS]
    draw(above[0], plain, most, "the prompt in plaintext")
    draw(above[1], first[:, :CHANNELS].double(), HALF, "the share of party0")
    draw(above[2], second[:, :CHANNELS].double(), HALF, "the share of party1")
    draw(above[3], decode(first + second, FRACTION_BITS)[:, :CHANNELS], most, "both shares added up")
    above[0].set_yticks(range(len(tokens)), tokens, fontsize=6.5)
    above[0].tick_params(length=0)
    for panel, sign in zip(above[1:], ("=", "+", ""), strict=True):
        panel.set_ylabel(sign, fontsize=14, rotation=0, labelpad=8, va="center")
    histogram(below[0], rows, most, GREY, "equal tokens, equal rows")
    histogram(below[1], first.double(), HALF, BLUE, "uniform noise")
    histogram(below[2], second.double(), HALF, ORANGE, "uniform noise")
    histogram(below[3], decode(first + second, FRACTION_BITS), most, GREY, "the prompt again")
    figure.savefig(file, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    picture(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "shares.png")
