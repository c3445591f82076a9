"""The stand-in libcudart: what a launcher may rely on, and what it is refused as a driver would refuse it."""

import ctypes
import os
import subprocess
import sys
from ctypes import byref, c_float, c_int, c_uint, c_void_p

import numpy as np
import pytest
from ptxsim import (
    BUILD,
    READABLE,
    ROOT,
    WRITABLE,
    In,
    InOut,
    Module,
    Out,
    Simulator,
    SimulatorError,
    address,
    library,
    make,
    program,
    ptx,
    tensor_map,
)

INVALID_VALUE, INVALID_CONFIGURATION, LAUNCH_FAILURE, NOT_SUPPORTED = 1, 9, 719, 801
NO_MEMORY, CAPTURE_UNMATCHED = 2, 903
INVALID_CLUSTER, INVALID_DEVICE, INVALID_HANDLE, NO_IMAGE = 912, 101, 400, 209
CAPTURE_UNSUPPORTED, CAPTURE_UNJOINED, CAPTURE_IMPLICIT = 900, 904, 906


def at(memory: np.ndarray) -> c_void_p:
    return c_void_p(address(memory))


def error() -> str:
    return library().ptxsim_error().decode()


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return program("runtime")


@pytest.fixture(scope="module")
def clusters() -> ctypes.CDLL:
    return program("cluster_sm90")


@pytest.fixture
def sim():
    with Simulator() as simulator:
        yield simulator


def test_a_launch_runs_when_the_stream_is_synchronised(host, sim):
    x = np.zeros(1000, np.float32)
    sim.buffer(x)
    assert host.launch_add(at(x), c_float(1), 1000, None) == 0
    assert not x.any()
    assert library().cudaStreamSynchronize(None) == 0
    assert (x == 1).all()


def test_launches_of_a_stream_run_in_order(host, sim):
    x, y = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    sim.buffer(x), sim.buffer(Out(y))
    for _ in range(3):
        assert host.launch_add(at(x), c_float(1), 1000, None) == 0
    assert host.launch_copy(at(y), at(x), 1000, None) == 0
    assert len(sim.run()) == 4
    assert (y == 3).all()


def test_a_buffer_that_was_not_registered_is_out_of_bounds(host, sim):
    x = np.zeros(1000, np.float32)
    assert host.launch_add(at(x), c_float(1), 1000, None) == 0
    assert library().cudaDeviceSynchronize() == LAUNCH_FAILURE
    assert error().startswith("GLOBAL_OOB: ")
    assert library().cudaGetLastError() == LAUNCH_FAILURE
    assert library().cudaGetLastError() == 0


def test_an_input_is_read_only(host, sim):
    x = np.zeros(8, np.float32)
    sim.buffer(In(x))
    host.launch_add(at(x), c_float(1), 8, None)
    with pytest.raises(SimulatorError) as raised:
        sim.run()
    assert raised.value.kind == "GLOBAL_RO"


def test_memory_may_be_for_writing_only(host, sim):
    x = np.zeros(8, np.float32)
    library().ptxsim_buffer(address(x), x.nbytes, WRITABLE)
    host.launch_add(at(x), c_float(1), 8, None)  # x += 1
    with pytest.raises(SimulatorError, match="may not be read") as raised:
        sim.run()
    assert raised.value.kind == "GLOBAL_WO"
    library().ptxsim_buffer(address(x), x.nbytes, READABLE | WRITABLE)
    host.launch_add(at(x), c_float(1), 8, None)
    sim.run()


def test_unwritten_bytes_of_an_output_are_found(host, sim):
    x, y = np.ones(100, np.float32), np.zeros(100, np.float32)
    sim.buffer(In(x)), sim.buffer(Out(y))
    host.launch_copy(at(y), at(x), 60, None)
    sim.run()
    assert sim.unwritten(y) == 240
    host.launch_copy(at(y), at(x), 100, None)
    sim.run()
    assert sim.unwritten(y) is None


def test_symbols(host, sim):
    x = np.ones(64, np.float32)
    sim.buffer(x)
    assert host.clear_calls() == 0
    assert host.launch_scale(at(x), 64) == 0
    assert host.set_factor(c_float(5)) == 0  # waits for the launch before it
    assert host.launch_scale(at(x), 64) == 0
    sim.run()
    assert (x == 10).all()
    calls = c_int()
    assert host.get_calls(byref(calls)) == 0
    assert calls.value == 2
    assert host.overrun_symbol(at(x)) == INVALID_VALUE
    assert host.set_factor(c_float(2)) == 0


@pytest.mark.parametrize(
    ("grid", "block", "code"),
    [
        ((0, 1, 1), (128, 1, 1), INVALID_CONFIGURATION),
        ((1, 0, 1), (128, 1, 1), INVALID_CONFIGURATION),
        ((1, 65536, 1), (128, 1, 1), INVALID_CONFIGURATION),
        ((1, 1, 65536), (128, 1, 1), INVALID_CONFIGURATION),
        ((1, 1, 1), (0, 1, 1), INVALID_CONFIGURATION),
        ((1, 1, 1), (1025, 1, 1), INVALID_CONFIGURATION),
        ((1, 1, 1), (1, 1, 65), INVALID_CONFIGURATION),
        ((1, 1, 1), (512, 2, 2), INVALID_CONFIGURATION),
        ((2, 2, 2), (8, 8, 4), 0),
    ],
)
def test_grid_and_block_limits(host, sim, grid, block, code):
    x = np.zeros(1, np.float32)
    sim.buffer(x)
    assert host.launch_dims(at(x), *map(c_uint, grid), *map(c_uint, block)) == code
    assert ("LAUNCH: " in error()) == (code != 0)


def test_launch_bounds(host, sim):
    x = np.zeros(256, np.float32)
    sim.buffer(x)
    assert host.launch_bounded(at(x), c_uint(128)) == 0
    assert host.launch_bounded(at(x), c_uint(129)) == INVALID_VALUE
    assert "launch bounds, 128" in error()


def test_shared_memory_limits(host, sim):
    x = np.zeros(1, np.float32)
    sim.buffer(x)
    fixed = 4096
    assert host.launch_shared(at(x), 48 * 1024 - fixed, 0) == 0
    assert host.launch_shared(at(x), 48 * 1024 - fixed + 4, 0) == INVALID_VALUE
    assert "cudaFuncAttributeMaxDynamicSharedMemorySize" in error()
    assert host.launch_shared(at(x), 100 * 1024, 100 * 1024) == 0
    assert host.launch_shared(at(x), 1024, 227 * 1024 - fixed + 1) == INVALID_VALUE
    sim.run()
    assert x[0] == (48 * 1024 - fixed) / 4 + 100 * 1024 / 4 + 2 * 128


def test_programmatic_dependent_launch_is_refused(host, sim):
    x = np.zeros(1, np.float32)
    assert host.launch_programmatic(at(x)) == NOT_SUPPORTED
    assert "programmatic" in error()


def test_kernel_attributes(host, sim):
    threads, blocks, shared = c_int(), c_int(), c_int()
    assert host.describe_bounded(byref(threads), byref(blocks), byref(shared)) == 0
    assert (threads.value, shared.value) == (128, 4096)
    assert 1 <= blocks.value <= 16


def test_device_is_what_options_say():
    with Simulator(multiprocessors=78, devices=2):
        value = c_int()
        assert library().cudaDeviceGetAttribute(byref(value), 16, 0) == 0
        assert value.value == 78
        assert library().cudaGetDeviceCount(byref(value)) == 0
        assert value.value == 2
        assert library().cudaSetDevice(1) == 0
        assert library().cudaSetDevice(2) == INVALID_DEVICE
        assert error().startswith("DEVICE: ")
        assert library().cudaGetDevice(byref(value)) == 0
        assert value.value == 1


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="no option sead=3"), Simulator(sead=3):
        pass
    with pytest.raises(ValueError, match="no option races=7"), Simulator(races=7):
        pass


def test_an_event_orders_two_streams(host):
    for seed in range(12):
        with Simulator(seed=seed) as sim:
            x, y = np.zeros(500, np.float32), np.zeros(500, np.float32)
            sim.buffer(x), sim.buffer(y)
            assert host.two_streams(at(x), at(y), 500, 1) == 0
            assert (y == 1).all()


def test_two_streams_without_an_event_race(host):
    for seed in range(12):
        with Simulator(seed=seed) as sim:
            x, y = np.zeros(500, np.float32), np.zeros(500, np.float32)
            sim.buffer(x), sim.buffer(y)
            assert host.two_streams(at(x), at(y), 500, 0) == LAUNCH_FAILURE
            assert error().startswith("GLOBAL_RACE: ")


def test_a_captured_graph_runs_when_launched(host, sim):
    x = np.zeros(300, np.float32)
    sim.buffer(x)
    assert host.capture(at(x), 300, 0, 0) == 0
    assert not x.any()
    assert host.capture(at(x), 300, 0, 2) == 0
    assert (x == 6).all()


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (1, CAPTURE_UNSUPPORTED, "cudaMalloc"),
        (2, CAPTURE_UNSUPPORTED, "cudaStreamSynchronize"),
        (3, CAPTURE_IMPLICIT, "default stream"),
    ],
)
def test_what_a_capture_forbids(host, sim, spoil, code, said):
    x = np.zeros(300, np.float32)
    sim.buffer(x)
    assert host.capture(at(x), 300, spoil, 1) == code
    assert error().startswith("CAPTURE: ")
    assert said in error()
    sim.run()
    assert not x.any()


def test_capture_over_two_streams(host, sim):
    x, y = np.zeros(300, np.float32), np.zeros(300, np.float32)
    sim.buffer(x), sim.buffer(y)
    assert host.fork_capture(at(x), at(y), 300, 1) == 0
    assert (y == 1).all()
    assert host.fork_capture(at(x), at(y), 300, 0) == CAPTURE_UNJOINED


def test_copies_and_fills_run_in_stream_order(host, sim):
    x, back = np.ones(100, np.float32), np.zeros(100, np.float32)
    assert host.memory_in_order(at(x), at(back), 100) == 0
    assert (back == np.repeat([4, 3], 50)).all()


def test_allocated_memory_is_uninitialised(host, sim):
    x = np.zeros(100, np.float32)
    sim.buffer(x)
    assert host.read_unwritten(at(x), 100) == LAUNCH_FAILURE
    assert error().startswith("UNINIT: ")


def test_free_of_something_else_is_refused(sim):
    x = np.zeros(4)
    assert library().cudaFree(at(x)) == INVALID_VALUE
    assert error().startswith("MEMORY: ")


def test_a_destroyed_stream_is_refused(host, sim):
    stream = c_void_p()
    assert library().cudaStreamCreate(byref(stream)) == 0
    assert library().cudaStreamDestroy(stream) == 0
    assert library().cudaStreamSynchronize(stream) == INVALID_HANDLE
    assert error().startswith("STREAM: ")


def test_nothing_takes_time(sim):
    first, second, milliseconds = c_void_p(), c_void_p(), c_float()
    assert library().cudaEventCreate(byref(first)) == library().cudaEventCreate(byref(second)) == 0
    assert library().cudaEventRecord(first, None) == library().cudaEventRecord(second, None) == 0
    assert library().cudaEventSynchronize(second) == 0
    assert library().cudaEventElapsedTime(byref(milliseconds), first, second) == NOT_SUPPORTED
    assert error().startswith("TIME: ")


def test_memory_that_no_device_has_is_refused(sim):
    pointer = c_void_p()
    assert library().cudaMalloc(byref(pointer), ctypes.c_size_t(1 << 60)) == NO_MEMORY
    assert error().startswith("MEMORY: no room")


def test_attributes_nobody_simulates_are_refused(sim):
    value = c_int()
    assert library().cudaDeviceGetAttribute(byref(value), 9999, 0) == INVALID_VALUE
    assert error().startswith("DEVICE: ")


def test_what_the_device_says_of_itself(sim):
    """Attributes by their numbers in driver_types.h: an H100's."""
    said = {1: 1024, 4: 64, 5: 2**31 - 1, 6: 65535, 8: 48 * 1024, 10: 32, 12: 65536, 39: 2048, 75: 9, 76: 0}
    said |= {97: 227 * 1024, 106: 32, 120: 1}
    for attribute, expected in said.items():
        value = c_int()
        assert library().cudaDeviceGetAttribute(byref(value), attribute, 0) == 0
        assert value.value == expected, attribute


def test_captures_that_cannot_be(sim):
    stream, other, graph = c_void_p(), c_void_p(), c_void_p()
    lib = library()
    assert lib.cudaStreamBeginCapture(None, 0) == CAPTURE_UNSUPPORTED
    assert "use another stream" in error()
    assert lib.cudaStreamCreateWithFlags(byref(stream), 1) == 0
    assert lib.cudaStreamCreateWithFlags(byref(other), 1) == 0
    assert lib.cudaStreamEndCapture(stream, byref(graph)) != 0
    assert "not being captured" in error()
    assert lib.cudaStreamBeginCapture(stream, 0) == 0
    assert lib.cudaStreamBeginCapture(stream, 0) != 0
    assert "captured already" in error()
    event = c_void_p()
    assert lib.cudaEventCreate(byref(event)) == lib.cudaEventRecord(event, stream) == 0
    assert lib.cudaStreamWaitEvent(other, event, 0) == 0
    assert lib.cudaStreamEndCapture(other, byref(graph)) == CAPTURE_UNMATCHED
    assert "began in another stream" in error()


def test_launches_by_hand_are_checked(sim):
    x = np.zeros(1, np.float32)
    module = Module(ptx("tests/ptxsim/kernels/memory.cu"))
    with pytest.raises(SimulatorError, match="LAUNCH: there is no rank 8"):
        sim.launch(module, "write_input", 1, 32, [InOut(x)], rank=8)
    with pytest.raises(ValueError, match="takes 1 parameters, not 2"):
        sim.launch(module, "write_input", 1, 32, [InOut(x), 1])


def test_a_launch_into_a_stream_of_another_device_is_refused(host, sim):
    x, stream = np.zeros(8, np.float32), c_void_p()
    sim.buffer(x)
    assert library().cudaStreamCreate(byref(stream)) == 0
    assert library().cudaSetDevice(1) == 0
    assert host.launch_add(at(x), c_float(1), 8, stream) == INVALID_HANDLE
    assert error() == "STREAM: the stream is one of device 0, but device 1 is current"
    assert library().cudaSetDevice(0) == 0
    assert host.launch_add(at(x), c_float(1), 8, stream) == 0
    sim.run()
    assert (x == 1).all()


BESIDE_ANOTHER = """
import ctypes, sys
import numpy as np
from ptxsim import Simulator, address, program

ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
host = program("runtime")
with Simulator() as sim:
    x = np.zeros(8, np.float32)
    sim.buffer(x)
    assert host.launch_add(ctypes.c_void_p(address(x)), ctypes.c_float(1), 8, None) == 0
    sim.run()
    assert (x == 1).all()
"""


def test_another_libcudart_in_the_process_takes_nothing(host, tmp_path):
    """As a torch with CUDA loads it; its symbols have versions, too."""
    source, other = tmp_path / "other.c", tmp_path / "libcudart.so.99"
    source.write_text(
        "int __cudaLaunchKernel(void) { return 999; }\nint cudaGetLastError(void) { return 999; }\n"
    )
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcudart.so.99", "-Wl,--default-symver"]
    subprocess.run(["gcc", *flags, "-o", other, source], check=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/ptxsim")])}
    command = [sys.executable, "-c", BESIDE_ANOTHER, other]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_clusters(clusters, sim):
    ranks = np.zeros(16, np.int32)
    sim.buffer(ranks)
    assert clusters.launch_cluster(at(ranks), 8, 4, 0) == 0
    sim.run()
    assert ranks[:8].tolist() == [4, 104, 204, 304] * 2
    assert clusters.launch_cluster(at(ranks), 6, 4, 0) == INVALID_CLUSTER
    assert clusters.launch_cluster(at(ranks), 16, 16, 0) == INVALID_CLUSTER
    assert clusters.launch_cluster(at(ranks), 16, 16, 1) == 0
    assert clusters.launch_declared(at(ranks), 3) == INVALID_CLUSTER
    assert clusters.launch_declared(at(ranks), 4) == 0
    sim.run()
    assert ranks[:4].tolist() == [0, 1, 0, 1]


def test_ptx_for_another_architecture_is_refused():
    text = ptx("tests/ptxsim/kernels/cluster_sm90.cu", arch="90a")
    with Simulator(capability=80), pytest.raises(SimulatorError, match="IMAGE: the PTX is not for sm_80"):
        Module(text)
    with Simulator(capability=90):
        Module(text)


def test_a_compressed_fat_binary_is_refused(tmp_path):
    make("ptxsim")
    out, source = tmp_path / "squeezed.so", "tests/ptxsim/kernels/runtime.cu"
    flags = ["-std=c++20", "-gencode=arch=compute_80,code=compute_80", "-cudart", "none"]
    flags += ["--compress-mode=size", "-Xcompiler=-fPIC", "-shared", f"-L{BUILD}", "-lptxsim"]
    subprocess.run(["nvcc", *flags, f"-Xlinker=-rpath,{BUILD}", "-o", out, source], cwd=ROOT, check=True)
    squeezed = ctypes.CDLL(str(out))
    with Simulator() as sim:
        x = np.zeros(4, np.float32)
        sim.buffer(x)
        assert squeezed.launch_add(at(x), c_float(1), 4, None) == NO_IMAGE
        assert "compile with nvcc --no-compress" in error()


MATRIX = np.zeros((64, 256), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(sizes=(256, 64), strides=(256,), box=(128, 64)), ""),
        (dict(sizes=(256, 64), strides=(256,), box=(256, 64), swizzle=0), ""),
        (dict(sizes=(256, 64), strides=(256,), box=(256, 64)), "more than the swizzle's 128"),
        (dict(sizes=(256, 64), strides=(256,), box=(64, 64), swizzle=32), "more than the swizzle's 32"),
        (dict(sizes=(256, 64), strides=(250,), box=(128, 64)), "stride of dimension 1 is 250"),
        (dict(sizes=(256, 64), strides=(1 << 40,), box=(128, 64)), "below 2^40"),
        (dict(sizes=(256, 64), strides=(256,), box=(128, 257)), "box of dimension 1 is 257"),
        (dict(sizes=(256, 64), strides=(256,), box=(0, 64)), "box of dimension 0 is 0"),
        (dict(sizes=(256, 64), strides=(256,), box=(24, 64)), "24 bytes, not a multiple of 16"),
        (dict(sizes=(256, 0), strides=(256,), box=(128, 64)), "size of dimension 1 is 0"),
        (dict(sizes=(256, 64), strides=(256,), box=(128, 64), swizzle=5), "swizzle 5"),
        (dict(sizes=(1,) * 6, strides=(16,) * 5, box=(16,) * 6), "rank 6"),
    ],
)
def test_tensor_maps_follow_the_drivers_rules(sim, arguments, said):
    if not said:
        assert len(tensor_map(MATRIX, **arguments)) == 128
        return
    with pytest.raises(SimulatorError, match=r"^TENSOR_MAP: ") as raised:
        tensor_map(MATRIX, **arguments)
    assert said in str(raised.value)


def test_a_tensor_map_needs_an_aligned_start(sim):
    with pytest.raises(SimulatorError, match="not aligned to 16 bytes"):
        tensor_map(MATRIX.reshape(-1)[1:], (128, 8), (256,), (128, 8), element_bytes=1)


def test_buffers_can_be_replaced(host, sim):
    x = np.zeros(100, np.float32)
    sim.buffer(InOut(x[:50]))
    host.launch_add(at(x), c_float(1), 100, None)
    with pytest.raises(SimulatorError, match="GLOBAL_OOB"):
        sim.run()
    sim.buffer(InOut(x))
    host.launch_add(at(x), c_float(1), 100, None)
    sim.run()


def test_a_module_that_goes_takes_only_its_own_launches(host, sim):
    x = np.zeros(100, np.float32)
    sim.buffer(x)
    assert host.launch_add(at(x), c_float(1), 100, None) == 0
    other = Module(ptx("tests/ptxsim/kernels/runtime.cu"))
    del other
    sim.run()
    assert (x == 1).all()


def test_a_second_simulator_is_refused(sim):
    with pytest.raises(RuntimeError, match="open already"), Simulator():
        pass
