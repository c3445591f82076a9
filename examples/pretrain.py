"""Pre-trains a small but complete DeepSeek-V3 on real text: MLA, mixture of experts, MTP, FP8.

    python examples/pretrain.py                          the default recipe
    python examples/pretrain.py --tokens 500000          shorter
    python examples/pretrain.py --minutes 30 --depth 6   larger, as long as half an hour allows
    python examples/pretrain.py --data notes/ "books/**/*.txt"

Every field of TrainConfig is a flag (--help). Interrupted with Ctrl-C it saves; started again it goes on.
"""

from deepseek_ext.cli import train
from deepseek_ext.train import TrainConfig


def recipe() -> TrainConfig:
    """32 experts, top-4 of them, in a model of 4 layers; 2.5 M tokens of Python's standard library."""
    return TrainConfig(
        depth=4,  # width, heads, experts, batch and learning rate follow from it, and are printed
        tokens=2_500_000,
        precision="fp8",  # every Linear of attention and experts, forward and backward
        mtp_depth=1,  # each position also predicts the token after the next
        bias_update_speed=0.01,  # experts are balanced by a bias on their scores, not by a loss
    )


if __name__ == "__main__":
    raise SystemExit(train(recipe()))
