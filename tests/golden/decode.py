"""Recomputes the golden vectors as README.md specifies them; exits with 1 if any differs. Takes a folder."""

import ast
import bisect
import math
import struct
import sys
import zipfile
from pathlib import Path

TILE = 128


def load(path):
    """Name -> (shape, flat list) of every array of an .npz file: a zip of .npy files."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            start = 10 + struct.unpack("<H", data[8:10])[0]  # magic, version, header length, header
            header = ast.literal_eval(data[10:start].decode())
            letter = {"|u1": "B", "<u4": "I", "<i4": "i"}[header["descr"]]
            count = math.prod(header["shape"])
            values = list(struct.unpack(f"<{count}{letter}", data[start:]))
            arrays[name.removesuffix(".npy")] = header["shape"], values
    return arrays


def to_float(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def to_bits(x):  # nearest even, infinite beyond the largest
    try:
        return struct.unpack("<I", struct.pack("<f", x))[0]
    except OverflowError:
        return 0x7F800000 | (0x80000000 if x < 0 else 0)


def fp32(x):
    return to_float(to_bits(x))


FLOAT_MAX = to_float(0x7F7FFFFF)


class Format:
    def __init__(self, exponent_bits, mantissa_bits, bias, max_code, nan):
        self.nan, self.sign = nan, 1 << (exponent_bits + mantissa_bits)
        self.values = []
        for code in range(max_code + 1):
            exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
            fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
            self.values.append(fraction * 2.0 ** (max(exponent, 1) - bias))
        self.max = self.values[-1]

    def encode(self, x):
        magnitude, values = min(abs(x), self.max), self.values
        above = min(bisect.bisect_left(values, magnitude), len(values) - 1)
        below = max(above - 1, 0)
        down, up = magnitude - values[below], values[above] - magnitude
        code = below if down < up or (down == up and below % 2 == 0) else above
        return code | (self.sign if math.copysign(1, x) < 0 else 0)

    def decode(self, code):
        magnitude = code & (self.sign - 1)
        if magnitude >= len(self.values):
            return math.nan
        return -self.values[magnitude] if code & self.sign else self.values[magnitude]


E4M3 = Format(4, 3, 7, 0x7E, 0x7F)
E5M6 = Format(5, 6, 15, 0x7BF, 0x7FF)


def quantize(values, form, power_of_2):
    """One tile or block: its codes and the bits of its scale."""
    amax = max([abs(x) for x in values if math.isfinite(x)], default=0.0)
    scale = multiplier = 1.0
    if amax > 0:
        amax = max(amax, 2.0**-110)
        scale, multiplier = fp32(amax / form.max), fp32(form.max / amax)
        if power_of_2:
            mantissa, exponent = math.frexp(scale)  # scale = mantissa * 2^exponent, 0.5 <= mantissa < 1
            scale = math.ldexp(1.0, exponent - (mantissa == 0.5))
            multiplier = 1 / scale
    codes = [form.encode(fp32(x * multiplier)) if math.isfinite(x) else form.nan for x in values]
    return codes, to_bits(scale)


def quantize_rows(rows, form=E4M3, power_of_2=False):
    codes, scales = [], []
    for row in rows:
        for start in range(0, len(row), TILE):
            tile_codes, scale = quantize(row[start : start + TILE], form, power_of_2)
            codes += tile_codes
            scales.append(scale)
    return codes, scales


def dequantize_rows(codes, scales, k, form=E4M3):
    tiles = -(-k // TILE)
    rows = []
    for r in range(len(codes) // k):
        products = [fp32(form.decode(codes[r * k + c]) * scales[r * tiles + c // TILE]) for c in range(k)]
        rows.append([max(-FLOAT_MAX, min(FLOAT_MAX, y)) if y == y else y for y in products])
    return rows


def quantize_transposed(rows, offs, power_of_2):
    k, m = len(rows[0]), len(rows)
    width = TILE * (m // TILE + len(offs)) if offs else TILE * -(-m // TILE)
    columns = [[0.0] * width for _ in range(k)]
    start = begin = 0
    for end in offs or [m]:
        for i in range(end - begin):
            for c in range(k):
                columns[c][start + i] = rows[begin + i][c]
        start += TILE * -(-(end - begin) // TILE)
        begin = end
    return quantize_rows(columns, power_of_2=power_of_2)


def quantize_blocks(rows):
    n, k = len(rows), len(rows[0])
    codes, scales = [0] * (n * k), []
    for r in range(0, n, TILE):
        for c in range(0, k, TILE):
            places = [(i, j) for i in range(r, min(r + TILE, n)) for j in range(c, min(c + TILE, k))]
            block_codes, scale = quantize([rows[i][j] for i, j in places], E4M3, False)
            scales.append(scale)
            for (i, j), code in zip(places, block_codes, strict=True):
                codes[i * k + j] = code
    return codes, scales


def pack_e5m6(codes, k):
    rows = [codes[i : i + k] for i in range(0, len(codes), k)]
    groups = [row[i : i + 8] for row in rows for i in range(0, k, 8)]
    words = [sum(code << 12 * i for i, code in enumerate(group)) for group in groups]
    return [byte for word in words for byte in word.to_bytes(12, "little")]


def rank(choices):
    """Indices by falling choice; ties to the lower index."""
    return sorted(range(len(choices)), key=lambda i: (-choices[i], i))


def route(choices, top_k, n_groups, topk_groups):
    size = len(choices) // n_groups
    choices = [-math.inf if c != c else c for c in choices]
    groups = [choices[g * size : (g + 1) * size] for g in range(n_groups)]
    kept = rank([fp32(sum(group[i] for i in rank(group)[:2])) for group in groups])[:topk_groups]
    masked = [c if i // size in kept else -math.inf for i, c in enumerate(choices)]
    return rank(masked)[:top_k]


def recompute(a):
    """Name -> what the arrays of that name must hold."""

    def rows(name):
        (_, k), bits = a[name]
        return [[to_float(b) for b in bits[i : i + k]] for i in range(0, len(bits), k)]

    x, w, offs = rows("x"), rows("w"), a["offs"][1]
    out = {}
    out["tiles_codes"], out["tiles_scales"] = tiles = quantize_rows(x)
    out["tiles_p2_codes"], out["tiles_p2_scales"] = quantize_rows(x, power_of_2=True)
    dequantized = dequantize_rows(tiles[0], [to_float(s) for s in tiles[1]], len(x[0]))
    out["tiles_dequantized"] = [0x7FC00000 if y != y else to_bits(y) for row in dequantized for y in row]
    e5m6_codes, out["e5m6_scales"] = quantize_rows(x, E5M6, True)
    out["e5m6_packed"] = pack_e5m6(e5m6_codes, len(x[0]))
    out["blocks_codes"], out["blocks_scales"] = quantize_blocks(w)
    out["transposed_codes"], out["transposed_scales"] = quantize_transposed(w, [], False)
    out["grouped_codes"], out["grouped_scales"] = quantize_transposed(w, offs, False)
    retile_scales = [to_float(s) for s in a["retile_in_scales"][1]]
    retile_in = dequantize_rows(a["retile_in_codes"][1], retile_scales, len(w[0]))
    out["retile_codes"], out["retile_scales"] = quantize_transposed(retile_in, offs, True)
    bias = [to_float(b) for b in a["routing_bias"][1]]
    top_k, n_groups, topk_groups = a["routing_shape"][1]
    # Logits are 0 or NaN, so that sigmoid is exactly 0.5 or NaN.
    out["routing_indices"] = []
    for logits in rows("routing_logits"):
        choices = [fp32(0.5 + b) if logit == 0 else math.nan for logit, b in zip(logits, bias, strict=True)]
        out["routing_indices"] += route(choices, top_k, n_groups, topk_groups)
    return out


def main(folder):
    arrays = load(Path(folder) / "vectors.npz")
    expected = recompute(arrays)
    differing = [name for name, values in expected.items() if values != arrays[name][1]]
    for name in expected:
        print("DIFFERS" if name in differing else "ok     ", name, list(arrays[name][0]))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
