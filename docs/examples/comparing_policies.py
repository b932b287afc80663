# Comparing cache policies: what each one saves on shares, and what it loses. Run it as it is, or cell by cell in an
# editor that knows `# %%`:
#
#     python docs/examples/comparing_policies.py
#
# Nothing here is private and no party is needed: costs are predicted by the program itself, and quality is measured in
# plaintext, where every policy decides as it does on shares.

# %% [markdown]
# ## 1. A model, prompts, policies
# The model that comes along answers a list of questions about a document of mostly filler. With `MODEL` a checkpoint of
# yours, take prompts of yours; what they should say is then what the full cache says.

# %%
from pathlib import Path

import models.recall
from launch.measure.quality.prompts import task_of
from launch.measure.quality.runner import Runner
from launch.measure.quality.sweep import recall
from models.checkpoint import load_checkpoint
from mpcache import Setting, estimate, policies

MODEL = Path(models.recall.__file__).parent / "gpt2_questions"
LENGTH = 256
POLICIES = ("full", "mpcache:preset=few-queries,dynamic=0.2", "snapkv:budget=0.2", "streaming-llm:budget=0.2")

checkpoint = load_checkpoint(MODEL)
task = task_of(checkpoint)
assert task is not None
asked = task.prompts(LENGTH, 1, seed=0)
new_tokens = task.answer_tokens(LENGTH)
print(f"{len(policies())} policies are there; {asked[0].questions} questions in a prompt of {LENGTH} tokens")

# %% [markdown]
# ## 2. What a token costs on shares
# Rounds decide on a WAN, bytes on a slow line, dealt bytes on what the dealer must make and store.


# %%
def token_cost(policy: str) -> tuple[int, float, float]:
    """Return the rounds of a token of the answer, the MB that a party sends, and the MB that a party is dealt."""
    costs = estimate(MODEL, LENGTH, new_tokens=2, setting=Setting("masked", policy=policy)).further_tokens
    return costs.rounds, costs.bytes_sent / 1e6, costs.offline_bytes / 1e6


# %% [markdown]
# ## 3. What it loses
# The share of the questions that are answered right. `mpcache quality` does this for many prompts, lengths and budgets,
# with plots.

# %%
runner = Runner(checkpoint)
print(f"{'policy':<42}{'rounds':>7}{'sent':>9}{'dealt':>9}{'recall':>8}")
found = {}
for policy in POLICIES:
    rounds, sent, dealt = token_cost(policy)
    found[policy] = recall(asked, [runner.answer(prompt.ids, policy, new_tokens) for prompt in asked])
    print(f"{policy:<42}{rounds:>7}{sent:>6.2f} MB{dealt:>6.1f} MB{found[policy]:>8.2f}")

# %% [markdown]
# ## 4. What to read off
# A policy is worth it where the bytes that it saves matter more than the rounds that choosing takes, and where recall
# stays. One prompt says little about recall: take hundreds before you decide (docs/choosing.md).
