"""A tensor core's short accumulator in integers, written without a look at the simulator's own.

Every finite number is an integer times 2^-SCALE. Terms are aligned to the largest: what lies below its last
kept bit is cut, towards minus infinity, and so is what lies that far below the leading bit of their sum.
"""

from fractions import Fraction

import numpy as np

SCALE = 300  # products of FP8, FP16 and of BF16 of usual size are multiples of 2^-300


def fixed(value: float) -> int:
    scaled = Fraction(value) * 2**SCALE
    assert scaled.denominator == 1
    return scaled.numerator


def short_sum(terms: list[int], bits: int) -> int:
    largest = max(abs(term) for term in terms)
    if largest == 0:
        return 0
    unit = largest.bit_length() - 1 - bits
    total = sum(term >> unit for term in terms) << unit  # >> of a negative integer rounds down
    unit = abs(total).bit_length() - 1 - bits
    return total >> unit << unit if unit > 0 else total


def short_products(a: np.ndarray, b: np.ndarray, c: np.ndarray, bits: int) -> np.ndarray:
    """a b + c of one instruction: a [M, K], b [K, N], c [M, N]; FP32."""
    rows = [[fixed(x) for x in row] for row in a.astype(float).tolist()]
    columns = [[fixed(x) for x in column] for column in b.T.astype(float).tolist()]
    d = np.zeros(c.shape, np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            products = [x * y >> SCALE for x, y in zip(row, column, strict=True)]
            total = short_sum([fixed(float(c[i, j])), *products], bits)
            d[i, j] = np.float32(float(Fraction(total, 2**SCALE)))
    return d
