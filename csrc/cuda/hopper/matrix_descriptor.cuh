// How wgmma is told where a matrix lies in shared memory (PTX ISA: matrix descriptor).
#pragma once
#include <cstdint>

namespace dse::cuda::hopper {

// A K-major matrix in rows of 128 bytes with 128-byte swizzle, as load_box leaves it. `address` is that of
// its first row, a multiple of 1024, plus the bytes along K to begin at (inside the 128 of a row the
// hardware applies the swizzle to the sum, so a step of 32 codes is 32 bytes).
__device__ inline uint64_t matrix_descriptor(uint32_t address) {
    constexpr uint64_t kSwizzle128 = 1;
    constexpr uint64_t kEightRows = 1024;  // bytes from one group of eight rows to the next
    constexpr uint64_t kLeading = 1;       // has no meaning with a swizzle
    return (address & 0x3ffff) >> 4 | kLeading << 16 | (kEightRows >> 4) << 32 | kSwizzle128 << 62;
}

}  // namespace dse::cuda::hopper
