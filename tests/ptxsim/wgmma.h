// Operands of wgmma in shared memory: the 64-bit matrix descriptor, and where it says the elements lie.
#pragma once

#include <cstdint>

#include "program.h"
#include "tensor_map.h"

namespace ptxsim {

struct MatrixDescriptor {
    uint32_t start, leading, stride;  // bytes
    uint32_t swizzle;                 // 0 none, 1 32, 2 64, 3 128 bytes, as in TensorMap
    uint32_t base_offset;
    bool reserved_bits;

    explicit MatrixDescriptor(uint64_t bits)
        : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
          leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
          stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
          swizzle(bits >> 62 == 0 ? 0 : 4 - static_cast<uint32_t>(bits >> 62)),
          base_offset(static_cast<uint32_t>(bits >> 49 & 7)),
          reserved_bits((bits & 0x3ff1c000c000c000ull) != 0) {}

    // The shared address of 16 bytes of a K-major matrix: row `row`, bytes `byte` .. of its K. Groups of 8
    // rows lie `stride` apart; with a swizzle rows of its span follow each other, without one columns of 16
    // bytes lie `leading` apart.
    uint32_t at(uint32_t row, uint32_t byte) const {
        const uint32_t group = start + row / 8 * stride;
        if (swizzle == 0) return group + row % 8 * 16 + byte / 16 * leading;
        return swizzled(group + row % 8 * (16u << swizzle) + byte, swizzle);
    }
};

}  // namespace ptxsim
