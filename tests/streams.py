"""A device, a stream on it and graphs of what is submitted there: of the simulator, or of a GPU.

The operators run on them as torch.ops.deepseek_ext_sim with tensors of the CPU's memory, or as
torch.ops.deepseek_ext with tensors on the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_void_p
from typing import Any

import backends
import torch
from torch import Tensor

Replay = Callable[[], None]


class Simulated:
    """The simulator. What goes to the default stream while a graph is captured is an error there."""

    namespace = backends.SIMULATED

    def __init__(self, device: int):
        backends.load_simulator()
        self.device = device
        self._runtime = ctypes.CDLL("libptxsim.so")  # loaded already, and found by its name
        operators = ctypes.CDLL(str(backends.LIBRARY))
        self._device = c_int.in_dll(operators, "dse_simulated_device")
        self._stream = c_void_p.in_dll(operators, "dse_simulated_stream")

    def _do(self, name: str, *args: Any) -> None:
        error = getattr(self._runtime, name)(*args)
        assert error == 0, f"{name} gave error {error}"

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """A new stream of the device is current, and tensors lie there; device 0 stays the current one."""
        stream = c_void_p()
        self._do("cudaSetDevice", self.device)
        self._do("cudaStreamCreate", byref(stream))
        self._do("cudaSetDevice", 0)
        self._device.value, self._stream.value = self.device, stream.value
        try:
            yield
        finally:
            self._device.value, self._stream.value = 0, None
            self._do("cudaStreamDestroy", stream)

    @contextlib.contextmanager
    def captured(self, replays: list[Replay]) -> Iterator[None]:
        """Captures what is submitted to the current stream; adds to `replays` what runs it."""
        stream, graph = c_void_p(self._stream.value), c_void_p()
        self._do("cudaStreamBeginCapture", stream, 0)
        try:
            yield
        finally:
            error = self._runtime.cudaStreamEndCapture(stream, byref(graph))
        assert error == 0

        def replay() -> None:
            executable = c_void_p()
            self._do("cudaGraphInstantiate", byref(executable), graph, ctypes.c_ulonglong(0))
            self._do("cudaGraphLaunch", executable, stream)
            self._do("cudaStreamSynchronize", stream)

        replays.append(replay)

    def current_device(self) -> int:
        device = c_int()
        self._do("cudaGetDevice", byref(device))
        return device.value

    def place(self, x: Tensor) -> Tensor:
        return x.clone()


class Gpu:
    """The machine's last GPU."""

    namespace = "deepseek_ext"

    def __init__(self) -> None:
        self.device = torch.cuda.device_count() - 1

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        before = torch.cuda.current_device()
        with torch.cuda.stream(stream), torch.cuda.device(before):
            yield
        stream.synchronize()

    @contextlib.contextmanager
    def captured(self, replays: list[Replay]) -> Iterator[None]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=stream):
            yield

        def replay() -> None:
            graph.replay()
            stream.synchronize()

        replays.append(replay)

    def current_device(self) -> int:
        return torch.cuda.current_device()

    def place(self, x: Tensor) -> Tensor:
        return x.to(f"cuda:{self.device}")


def machine(backend: str) -> Simulated | Gpu:
    return Simulated(3) if backend == "simulator" else Gpu()
