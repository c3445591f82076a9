// Tensor maps: the 128 opaque bytes of CUtensorMap as this simulator fills them, and the rules under which
// the driver would make one (cuTensorMapEncodeTiled). On a device the bytes are the hardware's; here they are
// a plain struct, so a kernel that edits or copies a map must not rely on either.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>
#include <string>

namespace ptxsim {

inline constexpr uint32_t kMaxTensorRank = 5;

// 128 bytes; what a kernel's tensor-map operand points at.
struct TensorMap {
    static constexpr uint64_t kMagic = 0x70616d2d6d697370ull;

    uint64_t magic = kMagic;
    uint64_t address = 0;
    std::array<uint64_t, kMaxTensorRank - 1> stride{};  // bytes, of dimensions 1 and up
    std::array<uint32_t, kMaxTensorRank> size{};        // elements; dimension 0 is contiguous
    std::array<uint16_t, kMaxTensorRank> box{};         // elements
    uint8_t rank = 0;
    uint8_t element_bytes = 0;
    uint8_t data_type = 0;      // CUtensorMapDataType
    uint8_t swizzle = 0;        // CUtensorMapSwizzle: 0 none, 1 32, 2 64, 3 128 bytes
    uint8_t fill_with_nan = 0;  // out-of-bounds elements read as NaN instead of zero
    std::array<uint8_t, 11> pad{};
    uint64_t check = 0;  // hash of all bytes above: a map that something wrote into is noticed

    uint32_t box_bytes() const;
    uint32_t box_rows() const;  // rows of box[0] elements in the box
    uint64_t hash() const;
    bool intact() const { return magic == kMagic && check == hash(); }
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

// XOR of a shared-memory address as the swizzle does it: address bits 4.. with bits 7.. (swizzle as in
// TensorMap).
inline uint32_t swizzled(uint32_t address, uint32_t swizzle) {
    const uint32_t mask = (1u << swizzle) - 1;  // 0, 1, 3, 7
    return address ^ ((address >> 7 & mask) << 4);
}

struct TensorMapArguments {
    CUtensorMapDataType data_type;
    uint32_t rank;
    const void* address;
    const cuuint64_t* size;
    const cuuint64_t* stride;
    const cuuint32_t* box;
    const cuuint32_t* element_stride;
    CUtensorMapInterleave interleave;
    CUtensorMapSwizzle swizzle;
    CUtensorMapL2promotion l2_promotion;
    CUtensorMapFloatOOBfill fill;
};

// Fills `map`; or says in a sentence which of the driver's rules the arguments break (an empty string: none).
std::string encode_tiled(const TensorMapArguments& arguments, void* map);

}  // namespace ptxsim
