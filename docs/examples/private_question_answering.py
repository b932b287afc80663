# Private question answering, step by step. Run it as it is, or cell by cell in an editor that knows `# %%`:
#
#     python docs/examples/private_question_answering.py
#
# Everything runs on this machine, as processes of their own: two compute parties, a dealer, and for a moment a model
# owner. This program is the client.

# %% [markdown]
# ## 1. The model, the private document and the question
# The model is a small one that comes along. It has learned to read out a record of a document. Over hosts of your own,
# `MODEL` is your checkpoint and needs no weights here: `config.json` and the tokenizer suffice.

# %%
from pathlib import Path

import models.recall
from launch.local.deployment import local_deployment
from models.calibration.record import calibrated
from models.tokenizer.text import TextTokenizer
from mpcache import PrivateModel, Setting, estimate

MODEL = Path(models.recall.__file__).parent / "llama"
DOCUMENT = "Codes . Kepler : 0 4 5 1 ; Curie : 9 3 2 7 ; Bohr : 5 5 1 8 ."
QUESTION = "? Curie :"
NEW_TOKENS = 5

# %% [markdown]
# ## 2. What it will cost, before anything is sent
# Rounds and bytes follow from public sizes and from the bounds that the model's owner chose for its values
# (`calibrated` finds them beside the checkpoint, or makes them), so they are known beforehand and exact.

# %%
bounds = calibrated(MODEL).suites["masked"]
costs = estimate(MODEL, prompt_tokens=26, new_tokens=NEW_TOKENS, setting=Setting("masked", options=bounds))
predicted = (costs.model_load.rounds + costs.session.rounds, costs.model_load.bytes_sent + costs.session.bytes_sent)
print(f"predicted: {predicted[0]} rounds, {predicted[1]:,} bytes sent by a party, with loading the model")

# %% [markdown]
# ## 3. Ask
# `local_deployment` starts the parties and the dealer with keys of their own, and ends them with the block. Over hosts
# of your own the three lines are one: `PrivateModel.connect("client.yaml", tokenizer=MODEL)`.

# %%
with local_deployment(parties=2) as deployment:
    deployment.share_model(MODEL, "recall")
    with PrivateModel.connect(deployment.client, tokenizer=MODEL, model="recall") as model:
        output = model.generate(f"{DOCUMENT} {QUESTION}", max_new_tokens=NEW_TOKENS, return_dict_in_generate=True)

# %% [markdown]
# ## 4. The answer, and what it cost
# The parties' shares of each token met here alone. Each party's ledger counted what it sent on the wire.

# %%
answer = TextTokenizer.load(MODEL, ()).decode(output.result.tokens)
print(f"{QUESTION}{answer}")
for party, ledger in sorted(output.result.costs.items()):
    total = ledger["total"]
    print(f"{party}: {total['rounds']} rounds, {total['bytes_sent']:,} bytes sent")
print(f"first token after {output.result.first_token_seconds:.1f} s")

# %% [markdown]
# ## 5. What the parties and the dealer know now
# The model's architecture, suite and policy; that the prompt has 26 tokens and the answer 5; when it was asked, and by
# whom. Not the document, the question, the answer or the weights, unless all parties, or the dealer and a party, put
# together what they hold (docs/trust.md).
