"""The attention core, rotary embedding, and decoding from the compressed cache."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_ext.config import ModelConfig
from deepseek_ext.nn.rope import rotate, rotations, softmax_scale

Make = Callable[..., Any]
YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest result, and every operator's name."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel())
        return out


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_no_matrix_of_scores_is_made(precision: str, make_model: Make, make_batch: Make) -> None:
    """At 1024 tokens a T x T matrix would be larger than anything else that a training step makes."""
    model = make_model(precision, num_hidden_layers=1, num_nextn_predict_layers=0)
    tokens, targets = make_batch(1, 1024)
    with Largest() as seen:
        model.loss(tokens, targets).total.backward()
    assert "causal_attention" in seen.names
    assert seen.largest < 1024 * 1024


@pytest.mark.parametrize("scaling", [None, YARN])
def test_rotated_scores_depend_on_the_distance_alone(
    scaling: dict[str, Any] | None, rng: torch.Generator
) -> None:
    config = ModelConfig.preset("tiny", rope_scaling=scaling)
    q, k = (torch.randn(1, 1, 16, generator=rng) for _ in range(2))
    device = torch.device("cpu")

    def score(i: int, j: int) -> Tensor:
        at_i, at_j = (rotations(config, position, 1, device) for position in (i, j))
        return (rotate(q, at_i) * rotate(k, at_j)).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100), rtol=1e-4, atol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2
    assert torch.equal(rotate(q, rotations(config, 0, 1, device)), q)


def test_yarn_keeps_fast_pairs_and_slows_the_others() -> None:
    plain = ModelConfig.preset("tiny", qk_rope_head_dim=64)
    yarn = ModelConfig.preset("tiny", qk_rope_head_dim=64, rope_scaling={**YARN, "beta_fast": 8})
    fast, slow = (rotations(config, 1, 1, torch.device("cpu")).angle()[0] for config in (plain, yarn))
    ratio = slow / fast
    assert ratio[0] == 1
    torch.testing.assert_close(ratio[-1], torch.tensor(1 / 40), rtol=1e-4, atol=0)
    assert (ratio.diff() <= 1e-6).all()
    assert softmax_scale(yarn) / softmax_scale(plain) == pytest.approx(1.3689**2, rel=1e-4)  # 0.1 ln 40 + 1


@pytest.mark.parametrize("scaling", [None, YARN])
def test_cached_decoding_equals_the_full_forward(
    scaling: dict[str, Any] | None, make_model: Make, make_batch: Make
) -> None:
    model = make_model("fp32", rope_scaling=scaling).eval()
    tokens, _ = make_batch(2, 40)
    with torch.no_grad():
        full = model(tokens, use_mtp=False).logits
        cache = model.new_cache(2, 40)
        # A prompt, single tokens, and several at once, as speculative decoding verifies them.
        cuts = [0, 13, 14, 15, 19, 26, 27, 40]
        for start, end in pairwise(cuts):
            logits = model.decode(tokens[:, start:end], cache)
            torch.testing.assert_close(logits, full[:, end - 1], rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="40 cached and 1 new tokens exceed the cache's capacity of 40"):
            model.decode(tokens[:, :1], cache)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.03), ("fp8", 0.2)])
def test_cached_decoding_is_close_in_low_precision(
    precision: str, bound: float, make_model: Make, make_batch: Make
) -> None:
    """Relative to the logits' own size; the absorbed products round elsewhere than the full ones.

    Every expert is chosen, so that no rounding changes a route. Measured: 0.011 and 0.08.
    """
    model = make_model(precision, num_experts_per_tok=8, n_group=1, topk_group=1).eval()
    tokens, _ = make_batch(1, 24)
    with torch.no_grad():
        full = model(tokens, use_mtp=False).logits.float()
        cache = model.new_cache(1, 24)
        model.decode(tokens[:, :12], cache)
        for i in range(12, 24):
            error = model.decode(tokens[:, i : i + 1], cache).float() - full[:, i]
            assert error.norm() < bound * full[:, i].norm()
