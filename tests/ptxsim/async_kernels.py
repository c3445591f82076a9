"""Runs of the asynchronous test kernels on random data: each returns how wrong the result is."""

import ml_dtypes
import numpy as np
from ptxsim import In, InOut, Out, Simulator, compile, tensor_map

GEMM = "tests/ptxsim/kernels/gemm_tma.cu"
CLUSTER = "tests/ptxsim/kernels/gemm_cluster.cu"
EXCHANGE = "tests/ptxsim/kernels/exchange.cu"
RULES = "tests/ptxsim/kernels/async_rules.cu"

# A run that goes on for longer than this hangs.
HANG = 200_000_000


def random_codes(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """E4M3 codes of all finite values."""
    codes = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x38
    return codes


def product(a, b, sa, sb) -> tuple[np.ndarray, np.ndarray]:
    """(a sa) (b sb)' in FP64, and the sum of the magnitudes of its terms."""
    a = a.view(ml_dtypes.float8_e4m3fn).astype(float) * np.repeat(sa, 128, 1)
    b = b.view(ml_dtypes.float8_e4m3fn).astype(float) * np.repeat(np.repeat(sb, 128, 0), 128, 1)[: len(b)]
    return a @ b.T, np.abs(a) @ np.abs(b.T)


def operands(seed: int, m: int, n: int, k: int):
    random = np.random.default_rng(seed)
    a, b = random_codes(random, m, k), random_codes(random, n, k)
    sa = random.uniform(0.5, 2, (m, k // 128)).astype(np.float32)
    sb = random.uniform(0.5, 2, (-(-n // 128), k // 128)).astype(np.float32)
    return a, b, sa, sb


def gemm_result(fault: str, a, b, sa, sb, **options: int) -> np.ndarray:
    """gemm_<fault> of gemm_tma.cu."""
    m, n, k = len(a), len(b), a.shape[1]
    out = np.zeros((m, n), np.float32)
    with Simulator(**{"max_inst": HANG, **options}) as sim:
        sim.buffer(In(a)), sim.buffer(In(b))
        maps = [tensor_map(x, (k, len(x)), (k,), (128, 64)) for x in (a, b)]
        args = [*maps, In(sa), In(sb), Out(out), n, k]
        shared = 2 * 3 * 64 * 128 + 2048
        sim.launch(compile(GEMM, arch="90a"), f"gemm_{fault}", (n // 64, m // 64), 256, args, shared=shared)
        sim.run()
        assert sim.unwritten(out) is None
    return out


def gemm(fault: str, seed: int, m: int = 64, n: int = 128, k: int = 768, **options: int) -> float:
    """The largest |out - exact| / sum of |terms| of gemm_result on random operands."""
    given = operands(seed, m, n, k)
    out = gemm_result(fault, *given, seed=seed, **options)
    exact, size = product(*given)
    return float((np.abs(out - exact) / size).max())


def cluster_gemm(fault: str, seed: int, m: int = 512, n: int = 128, k: int = 512, **options: int) -> float:
    """gemm_cluster.cu on two clusters: the largest |out - exact| / (|exact| + 2^-9 sum of |terms|)."""
    a, b, sa, sb = operands(seed, m, n, k)
    out = np.zeros((m, n), ml_dtypes.bfloat16)
    with Simulator(seed=seed, **{"max_inst": HANG, **options}) as sim:
        sim.buffer(In(a)), sim.buffer(In(b)), sim.buffer(Out(out))
        maps = [
            tensor_map(a, (k, m), (k,), (128, 128)),
            tensor_map(b, (k, n), (k,), (128, 32)),
            tensor_map(out, (n, m), (2 * n,), (64, 64), swizzle=0),
        ]
        args = [*maps, In(sa), In(sb), m, n, k]
        shared = 3 * (128 + 64) * 128 + 128 * 64 * 2 + 2048
        sim.launch(compile(CLUSTER, arch="90a"), f"cluster_{fault}", 4, 384, args, shared=shared)
        sim.run()
        assert sim.unwritten(out) is None
    exact, size = product(a, b, sa, sb)
    return float((np.abs(out.astype(float) - exact) / (np.abs(exact) + 2.0**-9 * size)).max())


def exchange(fault: str, seed: int, ranks: int = 4, slice: int = 64, epochs: int = 3, **options: int) -> int:
    """exchange.cu, one launch a rank, all at once; the number of wrong values."""
    random = np.random.default_rng(seed)
    module = compile(EXCHANGE)
    data = [np.zeros((ranks * slice, 4), np.uint32) for _ in range(ranks)]
    flags = [np.zeros(16, np.uint32) for _ in range(ranks)]
    source = [random.integers(0, 2**31, (ranks * slice, 4), dtype=np.uint32) for _ in range(ranks)]
    out = [np.zeros((ranks * slice, 4), np.uint32) for _ in range(ranks)]
    with Simulator(seed=seed, **{"max_inst": HANG, **options}) as sim:
        for memory in (*data, *flags):
            sim.buffer(InOut(memory))
        peers = np.zeros((2, 8), np.uint64)
        for i in range(ranks):
            peers[:, i] = data[i].ctypes.data, flags[i].ctypes.data
        for rank in range(ranks):
            args = [peers.tobytes(), In(source[rank]), Out(out[rank]), slice, rank, ranks, epochs]
            sim.launch(module, f"exchange_{fault}", 1, 128, args, rank=rank)
        sim.run()
    wrong = 0
    for rank in range(ranks):
        for peer in range(ranks):
            sent = source[peer][rank * slice : (rank + 1) * slice].copy()
            sent[:, 0] += epochs
            wrong += int((out[rank][peer * slice : (peer + 1) * slice] != sent).sum())
    return wrong


def copy(fault: str, seed: int, **options: int) -> int:
    """copy_<fault> of async_rules.cu: y = x + 1 and z = y; the number of wrong values."""
    x = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    y, z = np.zeros_like(x), np.zeros_like(x)
    with Simulator(seed=seed, **{"max_inst": HANG, **options}) as sim:
        out = In(y) if fault == "read_only_result" else Out(y)
        sim.launch(compile(RULES, arch="90a"), f"copy_{fault}", 1, 64, [In(x), out, Out(z)])
        sim.run()
    return int((y != x + 1).sum() + (z != y).sum())


def fragment_product(
    a: np.ndarray, b: np.ndarray, fault: str = "none", threads: int = 128, **options: int
) -> np.ndarray:
    """a b' of BF16 matrices [64, 16] and [8, 16] by product_<fault> of async_rules.cu: one wgmma."""
    words = a.view(np.uint32)  # [64, 8]
    fragments = np.zeros((128, 4), np.uint32)
    for thread in range(128):
        row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4
        for i in range(4):
            fragments[thread, i] = words[row + i % 2 * 8, column + i // 2 * 4]
    out = np.zeros((64, 8), np.float32)
    with Simulator(**{"max_inst": HANG, **options}) as sim:
        args = [In(fragments), In(b.view(np.uint32)), Out(out)]
        sim.launch(compile(RULES, arch="90a"), f"product_{fault}", 1, threads, args)
        sim.run()
    return out


def bf16_operands(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((rows, 16)).astype(ml_dtypes.bfloat16) for rows in (64, 8)]


def product_of_fragments(fault: str, seed: int, **options: int) -> float:
    """The largest difference of fragment_product from the FP64 product of random matrices."""
    a, b = bf16_operands(seed)
    threads = 96 if fault == "three_warps" else 128
    out = fragment_product(a, b, fault, threads, seed=seed, **options)
    return float(np.abs(out - a.astype(float) @ b.astype(float).T).max())


def pair(fault: str, seed: int, **options: int) -> int:
    """pair_<fault> of async_rules.cu: CTAs of a pair write into each other's shared memory; wrong values."""
    out = np.zeros((4, 32), np.float32)
    with Simulator(seed=seed, **{"max_inst": HANG, **options}) as sim:
        sim.launch(compile(RULES, arch="90a"), f"pair_{fault}", 4, 32, [Out(out)])
        sim.run()
    right = np.array([[peer * 100 + i for i in range(32)] for peer in (1, 0, 1, 0)])
    return int((out != right).sum())


def load_box(matrix: np.ndarray, x: int, y: int, **options: int) -> np.ndarray:
    """The 16 x 16 box of a float matrix at column x, row y, by TMA."""
    rows, columns = matrix.shape
    out = np.zeros((16, 16), np.float32)
    with Simulator(**options) as sim:
        sim.buffer(In(matrix))
        described = tensor_map(matrix, (columns, rows), (4 * columns,), (16, 16), swizzle=0)
        sim.launch(compile(RULES, arch="90a"), "box", 1, 64, [described, Out(out), x, y])
        sim.run()
    return out


def store_box(matrix: np.ndarray, box: np.ndarray, x: int, y: int, **options: int) -> None:
    """Writes a 16 x 16 box into a float matrix at column x, row y, by TMA."""
    rows, columns = matrix.shape
    with Simulator(**options) as sim:
        sim.buffer(InOut(matrix))
        described = tensor_map(matrix, (columns, rows), (4 * columns,), (16, 16), swizzle=0)
        sim.launch(compile(RULES, arch="90a"), "unbox", 1, 64, [described, In(box), x, y])
        sim.run()
