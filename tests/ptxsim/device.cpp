#include "device.h"

#include <algorithm>
#include <cstdio>

namespace ptxsim {
namespace {

// Shared memory and registers are handed out in units.
uint32_t round_up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

cudaError_t device_attribute(const Device& device, cudaDeviceAttr attribute, int* value) {
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = kMaxThreadsPerBlock;
            break;
        case cudaDevAttrMaxBlockDimX:
            *value = kMaxBlock[0];
            break;
        case cudaDevAttrMaxBlockDimY:
            *value = kMaxBlock[1];
            break;
        case cudaDevAttrMaxBlockDimZ:
            *value = kMaxBlock[2];
            break;
        case cudaDevAttrMaxGridDimX:
            *value = static_cast<int>(kMaxGrid[0]);
            break;
        case cudaDevAttrMaxGridDimY:
            *value = kMaxGrid[1];
            break;
        case cudaDevAttrMaxGridDimZ:
            *value = kMaxGrid[2];
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = kSharedPerBlock;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = kSharedPerBlockOptIn;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = kSharedPerMultiprocessor;
            break;
        case cudaDevAttrReservedSharedMemoryPerBlock:
            *value = kSharedReservedPerBlock;
            break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor:
            *value = kRegistersPerMultiprocessor;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = kThreadsPerMultiprocessor;
            break;
        case cudaDevAttrMaxBlocksPerMultiprocessor:
            *value = kBlocksPerMultiprocessor;
            break;
        case cudaDevAttrWarpSize:
            *value = 32;
            break;
        case cudaDevAttrMultiProcessorCount:
            *value = static_cast<int>(device.multiprocessors);
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = static_cast<int>(device.capability / 10);
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = static_cast<int>(device.capability % 10);
            break;
        case cudaDevAttrL2CacheSize:
            *value = 50 << 20;
            break;
        case cudaDevAttrClusterLaunch:
            *value = device.capability >= 90;
            break;
        case cudaDevAttrUnifiedAddressing:
        case cudaDevAttrConcurrentKernels:
        case cudaDevAttrMemoryPoolsSupported:
        case cudaDevAttrStreamPrioritiesSupported:
            *value = 1;
            break;
        case cudaDevAttrCooperativeLaunch:
            *value = 0;
            break;
        default:
            return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

cudaDeviceProp device_properties(const Device& device) {
    cudaDeviceProp p{};
    std::snprintf(p.name, sizeof p.name, "PTX simulator (sm_%d)", static_cast<int>(device.capability));
    p.totalGlobalMem = 80ull << 30;
    p.sharedMemPerBlock = kSharedPerBlock;
    p.sharedMemPerBlockOptin = kSharedPerBlockOptIn;
    p.sharedMemPerMultiprocessor = kSharedPerMultiprocessor;
    p.reservedSharedMemPerBlock = kSharedReservedPerBlock;
    p.regsPerBlock = p.regsPerMultiprocessor = kRegistersPerMultiprocessor;
    p.warpSize = 32;
    p.maxThreadsPerBlock = kMaxThreadsPerBlock;
    p.maxThreadsPerMultiProcessor = kThreadsPerMultiprocessor;
    p.maxBlocksPerMultiProcessor = kBlocksPerMultiprocessor;
    for (int i = 0; i < 3; ++i) {
        p.maxThreadsDim[i] = static_cast<int>(kMaxBlock[i]);
        p.maxGridSize[i] = static_cast<int>(kMaxGrid[i]);
    }
    p.totalConstMem = 64 << 10;
    p.major = static_cast<int>(device.capability / 10);
    p.minor = static_cast<int>(device.capability % 10);
    p.multiProcessorCount = static_cast<int>(device.multiprocessors);
    p.concurrentKernels = p.unifiedAddressing = p.streamPrioritiesSupported = p.memoryPoolsSupported = 1;
    p.l2CacheSize = 50 << 20;
    p.clusterLaunch = device.capability >= 90;
    return p;
}

int resident_blocks(uint32_t threads, uint32_t registers, uint32_t shared_bytes) {
    const uint32_t warps = (threads + 31) / 32;
    const uint32_t shared = round_up(shared_bytes + kSharedReservedPerBlock, 128);
    const uint32_t by_threads = kThreadsPerMultiprocessor / (warps * 32);
    const uint32_t by_registers = kRegistersPerMultiprocessor / (warps * round_up(registers * 32, 256));
    return static_cast<int>(
        std::min({kBlocksPerMultiprocessor, by_threads, by_registers, kSharedPerMultiprocessor / shared}));
}

}  // namespace ptxsim
