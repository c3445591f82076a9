"""The processes of one run, started as torchrun would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nursery import Life, Nursery  # type: ignore[import-not-found]
from torch.distributed import TCPStore


@dataclass(slots=True)
class Ranks:
    """One run in several processes."""

    lives: list[Life]
    store: TCPStore
    """The launcher's, which outlives them."""

    def wait(self) -> list[int]:
        """How each of them ended, by rank."""
        return [life.wait() for life in self.lives]

    def said(self) -> str:
        return "\n".join(f"--- rank {rank}\n{life.said()}" for rank, life in enumerate(self.lives))


def start(
    nursery: Nursery,
    flags: list[str],
    folder: Path,
    size: int,
    prepared: dict[int, tuple[object, ...]] | None = None,
) -> Ranks:
    """`deepseek-ext train` in `size` processes, their output in `folder`.

    prepared: for a rank what it calls first, ("function of misbehaviour.py", arguments...).
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    lives = []
    for rank in range(size):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        function = (prepared or {}).get(rank)
        preparation = ("misbehaviour", *function) if function else ()
        lives.append(nursery.start(flags, folder / f"rank{rank}.txt", environment, preparation))
    return Ranks(lives, store)


def run(nursery: Nursery, flags: list[str], folder: Path, size: int) -> Ranks:
    """The same, once all of them have ended well."""
    ranks = start(nursery, flags, folder, size)
    assert ranks.wait() == [0] * size, ranks.said()
    return ranks
