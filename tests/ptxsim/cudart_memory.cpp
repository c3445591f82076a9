// Stand-in libcudart, part 2: device memory, copies, fills and kernels' variables. Device memory is the
// host's.
#include <cuda_runtime_api.h>

#include <cstring>
#include <vector>

#include "cudart.h"
#include "runtime.h"
#include "text.h"

using namespace ptxsim;

namespace {

void copy_now(Runtime& runtime, void* to, const void* from, size_t bytes) {
    runtime.forbid_and_synchronize("a blocking copy");
    std::memmove(to, from, bytes);
    runtime.host_wrote(to, bytes);
}

void* symbol_part(Runtime& runtime, const void* symbol, size_t offset, size_t bytes) {
    uint64_t size = 0;
    auto* address = static_cast<uint8_t*>(runtime.symbol_address(symbol, &size));
    if (offset + bytes > size)
        throw CudaError(cudaErrorInvalidValue, "MEMORY",
                        format("%zu bytes at offset %zu of a variable of %llu", bytes, offset,
                               static_cast<unsigned long long>(size)));
    return address + offset;
}

// The host may change its memory as soon as an asynchronous copy from pageable memory returns: the source is
// taken when the copy is submitted, unless an earlier kernel may still write it.
void copy_later(Runtime& runtime, void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                cudaStream_t handle) {
    Stream& stream = runtime.stream(handle);
    if (kind == cudaMemcpyHostToDevice) {
        const auto* first = static_cast<const uint8_t*>(from);
        runtime.submit_work(stream, [&runtime, to, source = std::vector<uint8_t>(first, first + bytes)] {
            std::memcpy(to, source.data(), source.size());
            runtime.host_wrote(to, source.size());
        });
        return;
    }
    runtime.submit_work(stream, [&runtime, to, from, bytes] {
        std::memmove(to, from, bytes);
        runtime.host_wrote(to, bytes);
    });
}

void fill_later(Runtime& runtime, void* to, int value, size_t bytes, Stream& stream) {
    runtime.submit_work(stream, [&runtime, to, value, bytes] {
        std::memset(to, value, bytes);
        runtime.host_wrote(to, bytes);
    });
}

}  // namespace

extern "C" {

PTXSIM_EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    return guarded([&](Runtime& runtime) {
        runtime.queue.forbid_in_capture("cudaMalloc");
        *pointer = runtime.allocate(bytes);
    });
}

PTXSIM_EXPORT cudaError_t cudaFree(void* pointer) {
    return guarded([&](Runtime& runtime) {
        runtime.queue.forbid_in_capture("cudaFree");
        runtime.synchronize();
        runtime.release(pointer);
    });
}

PTXSIM_EXPORT cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t handle) {
    return guarded([&](Runtime& runtime) {
        runtime.queue.forbid_in_capture("cudaMallocAsync", runtime.stream(handle));
        *pointer = runtime.allocate(bytes);
    });
}

PTXSIM_EXPORT cudaError_t cudaFreeAsync(void* pointer, cudaStream_t handle) {
    return guarded([&](Runtime& runtime) {
        Stream& stream = runtime.stream(handle);
        runtime.queue.forbid_in_capture("cudaFreeAsync", stream);
        runtime.submit_work(stream, [&runtime, pointer] { runtime.release(pointer); });
    });
}

PTXSIM_EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    return guarded([&](Runtime& runtime) { copy_now(runtime, to, from, bytes); });
}

PTXSIM_EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                          cudaStream_t stream) {
    return guarded([&](Runtime& runtime) { copy_later(runtime, to, from, bytes, kind, stream); });
}

PTXSIM_EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    return guarded([&](Runtime& runtime) {
        runtime.queue.forbid_in_capture("cudaMemset");
        fill_later(runtime, to, value, bytes, runtime.stream(nullptr));
    });
}

PTXSIM_EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
    return guarded([&](Runtime& runtime) { fill_later(runtime, to, value, bytes, runtime.stream(stream)); });
}

PTXSIM_EXPORT cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes,
                                             size_t offset, cudaMemcpyKind) {
    return guarded([&](Runtime& runtime) {
        copy_now(runtime, symbol_part(runtime, symbol, offset, bytes), from, bytes);
    });
}

PTXSIM_EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* from, size_t bytes,
                                                  size_t offset, cudaMemcpyKind kind, cudaStream_t stream) {
    return guarded([&](Runtime& runtime) {
        copy_later(runtime, symbol_part(runtime, symbol, offset, bytes), from, bytes, kind, stream);
    });
}

PTXSIM_EXPORT cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset,
                                               cudaMemcpyKind) {
    return guarded(
        [&](Runtime& runtime) { copy_now(runtime, to, symbol_part(runtime, symbol, offset, bytes), bytes); });
}

PTXSIM_EXPORT cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
    return guarded([&](Runtime& runtime) {
        uint64_t size = 0;
        *address = runtime.symbol_address(symbol, &size);
    });
}

PTXSIM_EXPORT cudaError_t cudaGetSymbolSize(size_t* bytes, const void* symbol) {
    return guarded([&](Runtime& runtime) {
        uint64_t size = 0;
        runtime.symbol_address(symbol, &size);
        *bytes = size;
    });
}
}
