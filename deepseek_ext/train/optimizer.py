"""AdamW as the paper uses it: FP32 master weights, BF16 moments, decay on matrices only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops

_MOMENTS = ("exp_avg", "exp_avg_sq")

# torch hides these from its compiler by importing all of it at the first call: 60 MiB and a second.
_add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
_zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


def local(x: Tensor) -> Tensor:
    """What this process holds of a parameter, or of anything shaped like one; shares its memory."""
    to_local = getattr(x, "to_local", None)  # of a DTensor, whose class is slow to import
    return x if to_local is None else to_local()


class AdamW(torch.optim.Optimizer):
    """AdamW over `ops.adamw_step_`, with moments in BF16 (paper, section 3.3.3).

    torch's own refuses BF16 moments beside FP32 parameters. The moments exist from the start, so that a
    checkpoint can be read straight into them, and each group counts its own steps. `step(grad_scale=...)`
    multiplies every gradient on the fly, which is how gradients are clipped without another pass over them.
    Raises ValueError for parameters that are not FP32, and for the state of another kind of optimizer.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]] | Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        moment_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.moment_dtype = moment_dtype
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _add_param_group(self, param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype != torch.float32:
                del self.param_groups[-1]
                raise ValueError(
                    f"AdamW: parameters must be float32, got {parameter.dtype} {list(parameter.shape)}; keep "
                    "FP32 weights and let the layers cast them"
                )
        for parameter in self.param_groups[-1]["params"]:
            self.state[parameter] = {
                moment: torch.zeros_like(parameter, dtype=self.moment_dtype) for moment in _MOMENTS
            }

    def zero_grad(self, set_to_none: bool = True) -> None:
        _zero_grad(self, set_to_none)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, grad_scale: float = 1.0
    ) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            group["step"] += 1
            states = [self.state[p] for p in parameters]
            ops.adamw_step_(
                list(map(local, parameters)),
                [local(p.grad) for p in parameters],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                lr=float(group["lr"]),
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                step=group["step"],
                grad_scale=grad_scale,
            )
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            stored = [state_dict["state"].get(number, {}) for number in group["params"]]
            if "step" not in group or not all(state.keys() == set(_MOMENTS) for state in stored):
                raise ValueError(
                    "AdamW.load_state_dict: this is the state of another kind of optimizer; load one that "
                    "deepseek_ext's AdamW gave, or begin with fresh moments"
                )
        super().load_state_dict(state_dict)
        # The base class casts all state to the parameter's dtype; from BF16 to FP32 and back loses nothing.
        for state in self.state.values():
            for moment in _MOMENTS:
                state[moment] = state[moment].to(self.moment_dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "moment_dtype": self.moment_dtype}


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> AdamW:
    """The optimizer of a model: weight decay on matrices only.

    "Matrices" are parameters of two dimensions or more; norms are not decayed. Layers notice a step, and
    renew their FP8 weight codes at their next use.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=betas,
        eps=eps,
    )


def optimizer_tensors(
    model: nn.Module, optimizer: AdamW, whole: Callable[[str, Tensor], Tensor] = lambda _, held: held
) -> dict[str, Tensor]:
    """The moments by parameter name: what a checkpoint stores of the optimizer, beside the step count.

    whole: makes of a parameter's name and what this process holds of it the tensor to store.
    """
    return {
        f"optimizer.{name}.{moment}": whole(name, optimizer.state[parameter][moment])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in _MOMENTS
    }
