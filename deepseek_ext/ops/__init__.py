"""The operators, one module per family; each is also `torch.ops.deepseek_ext.<name>`."""

from ._library import cpu_capability, using_cpu_capability

__all__ = ["cpu_capability", "using_cpu_capability"]
