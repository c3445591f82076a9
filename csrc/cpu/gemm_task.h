// What the gemm driver hands to the kernels of one instruction set: a rectangle of one product's result.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/gemm.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/tiles.h"

namespace dse::cpu {

// Up to this many rows are multiplied by dot products along K, which read B once without transposing it.
inline constexpr int kDotRows = 8;

// Codes are converted 64 at a time; the depth of a block that is cut off by K is rounded up to this.
inline constexpr int64_t kChunk = 64;

struct GemmTask {
    const GemmProduct* product;
    int64_t m0, m1;  // rows
    int64_t n0, n1;  // columns; n0 is a multiple of 128
};

// The two kernels of one instruction set. Both need `scratch_bytes(task)` bytes, aligned to 64.
struct GemmKernels {
    void (*panel)(const GemmTask& task, std::byte* scratch);
    void (*dot)(const GemmTask& task, std::byte* scratch);  // at most kDotRows rows; B with k_stride 1
    size_t (*scratch_bytes)(const GemmTask& task);
};

// E4M3 codes decoded: by the vector kernels as the two bytes of a BF16 (an E4M3 is exactly a BF16, subnormals
// included), by the generic ones as a float.
struct DecodeTables {
    alignas(64) uint8_t bf16_low[128];
    alignas(64) uint8_t bf16_high[128];
    alignas(64) uint16_t bf16_subnormal[32];  // indexed by the low 5 bits of a code below 8
    float value[256];
};
extern const DecodeTables kDecode;

}  // namespace dse::cpu
