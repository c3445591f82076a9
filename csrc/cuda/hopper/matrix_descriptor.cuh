// How wgmma is told where a matrix lies in shared memory (PTX ISA: matrix descriptor).
#pragma once
#include <cstdint>

namespace dse::cuda::hopper {

// A K-major matrix in rows of 128 bytes with 128-byte swizzle, as load_box leaves it. `address` is that of
// its first row, a multiple of 1024 below 2^18, as all of shared memory is; `along_k` are the bytes of each
// row to begin after (inside the 128 of a row the hardware applies the swizzle to the sum, so a step of 32
// codes is 32 bytes).
__device__ inline uint64_t matrix_descriptor(uint32_t address, uint32_t along_k) {
    constexpr uint32_t kSwizzle128 = 1;
    constexpr uint32_t kEightRows = 1024;  // bytes from one group of eight rows to the next
    constexpr uint32_t kLeading = 1;       // has no meaning with a swizzle
    const uint32_t low = (address >> 4) + (kLeading << 16) + (along_k >> 4);
    constexpr uint32_t kHigh = kEightRows >> 4 | kSwizzle128 << 30;
    return static_cast<uint64_t>(kHigh) << 32 | low;
}

}  // namespace dse::cuda::hopper
