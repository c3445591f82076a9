"""The DeepSeek-V3 training system: FP8 operators in C++, the model on them, and its trainer.

`import deepseek_ext` registers the operators (`torch.ops.deepseek_ext.*`, documented in `deepseek_ext.ops`).
The model and the tools around it are imported when first used.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

try:
    from . import ops
except (ImportError, ValueError, KeyboardInterrupt) as error:
    # Not compiled, DSE_CPU_CAPABILITY names no tier of this CPU, or Ctrl-C while torch is imported.
    # The command line says it in one line like its other errors; none of its own code is read by now.
    if os.path.basename(sys.argv[0]) in ("deepseek-ext", "-m"):
        interrupted = isinstance(error, KeyboardInterrupt)
        print(f"deepseek-ext: {'stopped at once' if interrupted else error}", file=sys.stderr)
        raise SystemExit(130 if interrupted else 2) from error
    raise

if TYPE_CHECKING:
    from .config import ModelConfig
    from .convert import Float8Linear, convert_linears
    from .hf import load_hf, save_hf
    from .model import DeepseekV3

__version__ = "0.1.0"
__all__ = [
    "DeepseekV3",
    "Float8Linear",
    "ModelConfig",
    "__version__",
    "convert_linears",
    "load_hf",
    "ops",
    "save_hf",
]

_LAZY = {
    "DeepseekV3": "model",
    "Float8Linear": "convert",
    "ModelConfig": "config",
    "convert_linears": "convert",
    "load_hf": "hf",
    "save_hf": "hf",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
