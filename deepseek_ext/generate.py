"""Text generation with the compressed key-value cache, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .model import DeepseekV3


def generate(
    model: DeepseekV3,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    stop_token: int | None = None,
    speculate: bool = False,
) -> str:
    """The text that follows `prompt`, without the prompt.

    tokenizer: of the `tokenizers` or the `transformers` package. temperature 0 takes the likeliest token each
    time; above it tokens are drawn from softmax(logits / temperature), with `seed` the same ones every time.
    Ends after max_new_tokens or before `stop_token`, by default the tokenizer's end-of-document token.

    Raises ValueError for speculate=True, which this version lacks, for an empty prompt, for a negative
    temperature or max_new_tokens, and where prompt and new tokens exceed max_position_embeddings.
    """
    if speculate:
        raise ValueError("generate: speculate=True is not available in this version; leave it out")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"generate: the prompt is no text, got {prompt!r}; write it in UTF-8") from error
    encoded = tokenizer.encode(prompt)
    tokens = list(getattr(encoded, "ids", encoded))
    if stop_token is None:
        stop_token = _end_of_document(tokenizer)
    new = []
    for token in generate_tokens(
        model, tokens, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    ):
        if token == stop_token:
            break
        new.append(token)
    return str(tokenizer.decode(new))


def generate_tokens(
    model: DeepseekV3,
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Iterator[int]:
    """Yields the tokens that follow `tokens`, one at a time; stop iterating to stop generating.

    The model runs in eval mode and is left in the mode that it was in. Arguments and errors are generate's.
    """
    longest = model.config.max_position_embeddings
    if not tokens:
        raise ValueError("generate: the prompt has no tokens; give at least one")
    if not temperature >= 0:
        raise ValueError(f"generate: temperature must not be negative, got {temperature}; 0 is greedy")
    if max_new_tokens < 0:
        raise ValueError(
            f"generate: max_new_tokens must not be negative, got {max_new_tokens}; write 0 or more"
        )
    if len(tokens) + max_new_tokens > longest:
        raise ValueError(
            f"generate: {len(tokens)} prompt tokens and {max_new_tokens} new ones exceed "
            f"max_position_embeddings ({longest}); shorten the prompt or lower max_new_tokens"
        )
    return _generate(model, tokens, max_new_tokens, temperature, seed)


def _generate(
    model: DeepseekV3, tokens: Sequence[int], max_new_tokens: int, temperature: float, seed: int | None
) -> Iterator[int]:
    device = model.lm_head.weight.device
    source = torch.Generator(device)
    if seed is None:
        source.seed()
    else:
        source.manual_seed(seed)
    cache = model.new_cache(1, len(tokens) + max_new_tokens)
    step = torch.tensor([list(tokens)], dtype=torch.int64, device=device)
    for _ in range(max_new_tokens):
        if was_training := model.training:
            model.eval()
        try:
            with torch.no_grad():
                logits = model.decode(step, cache)[0].float()
        finally:
            if was_training:
                model.train()
        if temperature == 0:
            chosen = logits.argmax()
        else:
            # From the largest down, so that a quotient that overflows has the probability 0.
            shares = ((logits - logits.max()) / max(temperature, 1e-30)).softmax(-1)
            chosen = torch.multinomial(shares, 1, generator=source)[0]
        token = int(chosen)
        yield token
        step = chosen.view(1, 1)


def _end_of_document(tokenizer: Any) -> int | None:
    """The end-of-document token of a `transformers` or a `tokenizers` tokenizer, if it has one."""
    if hasattr(tokenizer, "eos_token_id"):
        return tokenizer.eos_token_id
    return tokenizer.token_to_id("<|eos|>")
