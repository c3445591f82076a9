"""The CPU tiers that tests run on, and whether this host has one."""

from deepseek_ext import _native

CPU_TIERS = ["generic", "avx2", "avx512-novbmi", "avx512", "avx512_bf16-novbmi", "avx512_bf16"]


def host_has(tier: str) -> bool:
    try:
        _native.check_capability(tier)
    except ValueError:
        return False
    return True
