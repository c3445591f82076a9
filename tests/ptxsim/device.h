// The simulated device: an H100's limits, which launches are held to as the driver would hold them.
#pragma once

#include <driver_types.h>

#include <array>
#include <cstdint>

namespace ptxsim {

inline constexpr uint32_t kMaxThreadsPerBlock = 1024;
inline constexpr std::array<uint32_t, 3> kMaxBlock{1024, 1024, 64};
inline constexpr std::array<uint32_t, 3> kMaxGrid{2147483647u, 65535, 65535};
inline constexpr uint32_t kSharedPerBlock = 48 * 1024;  // without asking for more
inline constexpr uint32_t kSharedPerBlockOptIn =
    227 * 1024;  // with cudaFuncAttributeMaxDynamicSharedMemorySize
inline constexpr uint32_t kSharedPerMultiprocessor = 228 * 1024;
inline constexpr uint32_t kSharedReservedPerBlock = 1024;
inline constexpr uint32_t kRegistersPerMultiprocessor = 65536;
inline constexpr uint32_t kThreadsPerMultiprocessor = 2048;
inline constexpr uint32_t kBlocksPerMultiprocessor = 32;
inline constexpr uint32_t kPortableClusterSize = 8;
inline constexpr uint32_t kMaxClusterSize = 16;  // with cudaFuncAttributeNonPortableClusterSizeAllowed

// What options may change: another number of multiprocessors gives persistent kernels other waves.
struct Device {
    int64_t multiprocessors = 132;
    int64_t capability = 90;
    int64_t count = 8;  // devices of this kind in the machine: ranks
};

// cudaErrorInvalidValue for an attribute the stand-in does not know.
cudaError_t device_attribute(const Device& device, cudaDeviceAttr attribute, int* value);
cudaDeviceProp device_properties(const Device& device);

// Blocks of a kernel that fit a multiprocessor at once; registers are taken as the most a thread may have
// under the kernel's launch bounds, since what ptxas would use is not known here.
int resident_blocks(uint32_t threads, uint32_t registers, uint32_t shared_bytes);

}  // namespace ptxsim
