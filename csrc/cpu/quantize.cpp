#include "cpu/quantize.h"

#include "cpu/cache.h"
#include "cpu/intrinsics.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

// BF16 instructions flush subnormals and would give other bits.
#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/quantize.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void quantize_tiles(const FloatMatrix& x, bool power_of_2, uint8_t* codes, float* scales,
                    const ParallelFor& parallel) {
    DSE_SELECT(quantize_tiles)(x, power_of_2, codes, scales, parallel);
}

void quantize_blocks(const FloatMatrix& w, int64_t count, int64_t matrix_stride, bool power_of_2,
                     uint8_t* codes, float* scales, const ParallelFor& parallel) {
    DSE_SELECT(quantize_blocks)(w, count, matrix_stride, power_of_2, codes, scales, parallel);
}

void dequantize(const CodeMatrix& x, FloatType type, void* out, const ParallelFor& parallel) {
    DSE_SELECT(dequantize)(x, type, out, parallel);
}

void quantize_e5m6(const FloatMatrix& x, uint8_t* packed, float* scales, const ParallelFor& parallel) {
    DSE_SELECT(quantize_e5m6)(x, packed, scales, parallel);
}

void dequantize_e5m6(const PackedMatrix& x, FloatType type, void* out, const ParallelFor& parallel) {
    DSE_SELECT(dequantize_e5m6)(x, type, out, parallel);
}

}  // namespace dse::cpu
