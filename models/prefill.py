"""A prompt on its way into the cache: in the batches that the policy asks for, or through the model's encoder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

from models.cache import Batch, KVCache
from models.decoder import Decoder
from models.prompt_rows import Looking
from protocols.suite import Value


async def prefill(
    decoder: Decoder,
    cache: KVCache,
    prompt: Value,
    progress: Callable[[int, int], None] = lambda done, total: None,
    whole: bool = False,
) -> Value:
    """Return the logits [1, V] after a prompt's indices [T], which come in the policy's batches and fill a cache that is
    empty but for a registered prefix, or are read by the model's encoder. The policy's `probes` in front are no part of it.

    progress(done, total): called after each layer of each batch. whole: as in `Decoder.forward`.
    """
    if decoder.architecture.encoder is not None:
        return await decoder.begin(prompt, cache, progress, whole)
    if cache.prompt.start is not None:
        await decoder.begin_padded(cache, prompt.shape[0])
    if probes := decoder.policy.probes:
        cache.looking.probes = await decoder.looked_up(prompt[:probes])
        prompt = prompt[probes:]
    if cache.coming is not None:
        first, cache.coming = await cache.coming(cache), None
        prompt = prompt if first is None else decoder.suite.concat([first, prompt], 0)
    before, own = cache.behind, prompt.shape[0]
    length = cache.prompt_tokens = before + own
    ends = list(accumulate(decoder.policy.prompt_batches(own), initial=before))
    batches = [Batch(length, start, stop - start, before) for start, stop in pairwise(ends)]
    ahead = max(decoder.policy.looking_ahead(batch) for batch in batches)
    if ahead and not probes:
        cache.looking.end = await decoder.embedded(prompt[own - ahead :], length - ahead)
    logits = None
    for n, batch in enumerate(batches):

        def after_layer(done: int, total: int, n: int = n) -> None:
            progress(n * total + done, len(batches) * total)

        inputs = prompt[batch.before - before : batch.before - before + batch.tokens]
        logits = await decoder.forward(inputs, cache, True, after_layer, whole)
    cache.looking, cache.places, cache.rows_of = Looking(), None, None
    assert logits is not None
    return logits
