"""Where BF16 products are slow, torch gets FP32 factors, and the model stays what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_ext.nn import matmul
from deepseek_ext.nn.matmul import factor

Make = Callable[..., Any]
PRODUCTS = {"mm", "addmm", "bmm", "linear", "_grouped_mm"}


class DtypesOfProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.seen |= {(name, t.dtype) for t in args if isinstance(t, Tensor) and t.dim() > 1}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_no_bf16_product_where_they_are_slow(
    precision: str, make_model: Make, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients stay the same but for roundings. Every expert is chosen: none changes a route."""
    everyone = {"num_experts_per_tok": 8, "n_group": 1, "topk_group": 1}
    batch = make_batch(2, 32)
    results = []
    for slow in (False, True):
        monkeypatch.setattr(matmul, "_SLOW_BF16", slow)
        model = make_model(precision, num_nextn_predict_layers=1, **everyone)
        with DtypesOfProducts() as products:
            loss = model.loss(*batch).total
            loss.backward()
            logits = model(batch[0]).logits
        grads = {name: p.grad for name, p in model.named_parameters()}
        assert any(dtype == torch.bfloat16 for _, dtype in products.seen) != slow
        assert logits.dtype == torch.bfloat16
        results.append((loss.item(), grads))
    (fast_loss, fast), (slow_loss, slow_grads) = results
    assert slow_loss == pytest.approx(fast_loss, rel=1e-3)
    for name, grad in fast.items():
        assert (slow_grads[name] - grad).norm() < 0.1 * grad.norm(), name


def test_a_factor_is_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 8).bfloat16()
    monkeypatch.setattr(matmul, "_SLOW_BF16", True)
    assert factor(x).dtype == torch.float32
    assert torch.equal(factor(x), x.float())
    single = x.float()
    assert factor(single) is single
    monkeypatch.setattr(matmul, "_SLOW_BF16", False)
    assert factor(x) is x
