// What the quantize family requires of its arguments and how it allocates its results, on every device. The
// fakes in deepseek_ext/ops/quantize.py state the same requirements in the same words; a test compares the
// two.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <utility>
#include <vector>

#include "formats/e5m6.h"
#include "formats/tiles.h"
#include "ops/new_tensor.h"
#include "ops/require.h"

namespace dse {

using Shape = std::vector<int64_t>;

inline void require_rows(const char* op, const char* name, const Tensor& x) {
    DSE_REQUIRE(x.dim() >= 1, op, ": ", name, " must be [..., K], got a scalar; reshape it to [1]");
}

inline void require_matrix(const char* op, const char* name, const Tensor& x) {
    DSE_REQUIRE(x.dim() == 2, op, ": ", name, " must be [M, K], got ", describe(x),
                "; flatten the leading dimensions into M");
}

inline void require_weight(const char* op, const char* name, const Tensor& w) {
    DSE_REQUIRE(w.dim() == 2 || w.dim() == 3, op, ": ", name, " must be [N, K] or [E, N, K], got ",
                describe(w), "; reshape it to one of them");
}

inline void require_offs(const char* op, const std::optional<Tensor>& offs) {
    if (!offs) return;
    DSE_REQUIRE(offs->scalar_type() == ScalarType::Int && offs->dim() == 1 && offs->size(0) >= 1, op,
                ": offs must be int32 [E] with E >= 1, got ", describe(offs->scalar_type()), " ",
                describe(*offs), "; give the end offset of each group");
}

inline void require_float_rows(const char* op, const Tensor& x) {
    require_rows(op, "x", x);
    require_float(op, "x", x);
}

inline void require_float_groups(const char* op, const Tensor& x, const std::optional<Tensor>& offs) {
    require_matrix(op, "x", x);
    require_float(op, "x", x);
    require_offs(op, offs);
}

inline void require_float_weight(const char* op, const Tensor& w) {
    require_weight(op, "w", w);
    require_float(op, "w", w);
}

inline void require_codes(const char* op, const Tensor& codes) {
    DSE_REQUIRE(codes.scalar_type() == ScalarType::Float8_e4m3fn, op, ": codes must be float8_e4m3fn, got ",
                describe(codes.scalar_type()), "; quantise first");
}

template <class... Of>
void require_scales(const char* op, const Tensor& scales, const Shape& wanted, const Of&... of) {
    DSE_REQUIRE(scales.scalar_type() == ScalarType::Float && shape_of(scales) == wanted, op,
                ": scales must be float32 ", describe(wanted), " for ", of..., ", got ",
                describe(scales.scalar_type()), " ", describe(scales),
                "; pass the scales that were made with them");
}

inline void require_tiles(const char* op, const Tensor& codes, const Tensor& scales) {
    require_rows(op, "codes", codes);
    require_codes(op, codes);
    Shape wanted = shape_of(codes);
    wanted.back() = num_tiles(wanted.back());
    require_scales(op, scales, wanted, "codes ", describe(codes), " in tiles of 128");
}

inline void require_retile(const char* op, const Tensor& codes, const Tensor& scales,
                           const std::optional<Tensor>& offs) {
    require_matrix(op, "codes", codes);
    require_tiles(op, codes, scales);
    require_offs(op, offs);
}

inline void require_blocks(const char* op, const Tensor& codes, const Tensor& scales) {
    require_weight(op, "codes", codes);
    require_codes(op, codes);
    Shape wanted = shape_of(codes);
    for (size_t i = wanted.size() - 2; i < wanted.size(); ++i) wanted[i] = num_tiles(wanted[i]);
    require_scales(op, scales, wanted, "codes ", describe(codes), " in blocks of 128x128");
}

inline void require_packed(const char* op, const Tensor& packed, const Tensor& scales, int64_t k) {
    require_rows(op, "packed", packed);
    DSE_REQUIRE(packed.scalar_type() == ScalarType::Byte, op, ": packed must be uint8, got ",
                describe(packed.scalar_type()), "; use quantize_e5m6");
    DSE_REQUIRE(k >= 0, op, ": k must not be negative, got ", k, "; give the row length before packing");
    Shape wanted = shape_of(packed);
    wanted.back() = e5m6_row_bytes(k);
    DSE_REQUIRE(shape_of(packed) == wanted, op, ": packed must be ", describe(wanted), " for k = ", k,
                ", got ", describe(packed), "; give k as it was before packing");
    wanted.back() = num_tiles(k);
    require_scales(op, scales, wanted, "k = ", k, " in tiles of 128");
}

inline void require_target(const char* op, ScalarType dtype) {
    DSE_REQUIRE(is_plain_float(dtype), op, ": dtype must be bfloat16, float16 or float32, got ",
                describe(dtype), "; convert the result instead");
}

// The values of offs, where the host can read them.
inline void require_ascending(const char* op, const int32_t* offs, int64_t count, int64_t rows) {
    int32_t before = 0;
    for (int64_t i = 0; i < count; ++i) {
        DSE_REQUIRE(offs[i] >= before && offs[i] <= rows, op,
                    ": offs must ascend from 0 to at most M = ", rows, ", got offs[", i, "] = ", offs[i],
                    i ? " after " : "", i ? std::to_string(before) : "",
                    "; give the end offset of each group's rows");
        before = offs[i];
    }
}

inline Tensor new_codes(const Tensor& like, const Shape& shape) {
    return new_tensor(like, shape, ScalarType::Float8_e4m3fn);
}

// Whether scales beside x are M-major.
inline bool has_m_major_scales(const Tensor& x) {
#ifdef DSE_SIMULATOR
    (void)x;  // in the CPU's memory, which stands for a GPU's
    return true;
#else
    return x.is_cuda();
#endif
}

// Scales [..., T]: contiguous on the CPU; on CUDA M-major, the stride of the last dimension padded to 4 for
// TMA.
inline Tensor new_scales(const Tensor& like, const Shape& shape) {
    if (!has_m_major_scales(like)) return new_tensor(like, shape, ScalarType::Float);
    const size_t last = shape.size() - 1;
    Shape strides(shape.size());
    int64_t rows = 1;
    for (size_t i = last; i-- > 0; rows *= shape[i]) strides[i] = rows;
    strides[last] = ceil_div(rows, 4) * 4;
    return new_strided(like, shape, strides, ScalarType::Float);
}

struct Quantized {
    Tensor codes, scales;
};

// Codes [..., K] in tiles.
inline Quantized new_tiles(const Tensor& like, const Shape& shape) {
    Shape tiles = shape;
    tiles.back() = num_tiles(tiles.back());
    return {new_codes(like, shape), new_scales(like, tiles)};
}

// Codes [K, M'] in tiles for x [M, K].
inline Quantized new_transposed(const Tensor& like, int64_t m, int64_t k, const std::optional<Tensor>& offs) {
    return new_tiles(like, {k, offs ? grouped_columns(m, offs->size(0)) : padded_columns(m)});
}

// Codes [N, K] or [E, N, K] in blocks.
inline Quantized new_blocks(const Tensor& like, const Shape& shape) {
    Shape blocks = shape;
    for (size_t i = blocks.size() - 2; i < blocks.size(); ++i) blocks[i] = num_tiles(blocks[i]);
    return {new_codes(like, shape), new_scales(like, blocks)};
}

inline Quantized new_transposed_blocks(const Tensor& codes) {
    Shape shape = shape_of(codes);
    std::swap(shape[shape.size() - 2], shape[shape.size() - 1]);
    return new_blocks(codes, shape);
}

// Packed E5M6 codes of x.
inline Quantized new_packed(const Tensor& x) {
    Shape bytes = shape_of(x), tiles = bytes;
    bytes.back() = e5m6_row_bytes(bytes.back());
    tiles.back() = num_tiles(tiles.back());
    return {new_tensor(x, bytes, ScalarType::Byte), new_scales(x, tiles)};
}

inline Tensor new_unpacked(const Tensor& packed, int64_t k, ScalarType dtype) {
    Shape shape = shape_of(packed);
    shape.back() = k;
    return new_tensor(packed, shape, dtype);
}

}  // namespace dse
