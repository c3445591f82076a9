// What kernels are handed on every device: pointers into tensors, their shapes and strides.
//
// Strides are in elements. Pointers are memory of the device that the kernel runs on.
#pragma once
#include "formats/float_type.h"

namespace dse {

// A row-major matrix of floating-point numbers: elements of a row are adjacent.
struct FloatMatrix {
    const void* data;
    FloatType type;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;
};

// [sequences, heads, tokens, columns] by strides in elements; the columns are adjacent.
struct HeadRows {
    void* data;
    int64_t sequence_stride, head_stride, row_stride;
};

template <class T>
DSE_FN T* row_at(const HeadRows& x, int64_t sequence, int64_t head, int64_t token) {
    return static_cast<T*>(x.data) + sequence * x.sequence_stride + head * x.head_stride +
           token * x.row_stride;
}

// Heads whose last columns are rotated by position: of queries and keys [plain + rotated], of keys and values
// as they are projected up [plain + values].
struct RopeShape {
    FloatType type;  // of all HeadRows
    int64_t sequences, tokens, heads;
    int64_t plain, rotated, values;
    const float* rotation;  // cosine and sine of each pair: [tokens, rotated]
};

// A matrix whose elements are only copied: `width` bytes a row, `row_stride` bytes apart.
struct ByteMatrix {
    const uint8_t* data;
    int64_t rows;
    int64_t width;
    int64_t row_stride;
};

// E4M3 codes with a scale for each 1x128 tile, or for each 128x128 block (`rows_per_scale` 1 or 128).
struct CodeMatrix {
    const uint8_t* codes;
    const float* scales;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;
    int64_t scale_row_stride;
    int64_t scale_column_stride;
    int64_t rows_per_scale;
};

// E5M6 codes of `columns` elements a row, packed in `row_stride` bytes, with a scale for each 1x128 tile.
struct PackedMatrix {
    const uint8_t* packed;
    const float* scales;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;
    int64_t scale_row_stride;
    int64_t scale_column_stride;
};

// Scales to be written: that of (row, tile) is at data[row * row_stride + tile * column_stride]. On CUDA the
// rows are adjacent and columns a multiple of 4 apart, as TMA wants it; data null: not wanted.
struct ScaleMatrix {
    float* data;
    int64_t row_stride;
    int64_t column_stride;
};

// Row groups: group g is rows [ends[g-1], ends[g]), ascending and within the matrix. `ends` null: all rows,
// one group, and as many columns as padded_columns() gives; otherwise grouped_columns().
struct Groups {
    const int32_t* ends;
    int64_t count;
};

// One number for each row; data null: all are 1.
struct RowWeights {
    const float* data;
    int64_t stride;
};

// Codes [rows, columns] and scales [rows, ceil(columns / 128)] to be written; codes null: not wanted.
struct TileResults {
    uint8_t* codes;
    float* scales;
};

// --- permute: T tokens, K choices a token
// -------------------------------------------------------------------

// Which row of the source each of `count` results is: rows[i] / top_k.
struct RowOrder {
    const int32_t* rows;
    int64_t count;
    int64_t top_k;

    // -1 for none. Divided in 32 bits: in 64 that takes tens of cycles on some CPUs, longer than a short row.
    DSE_FN int64_t token(int64_t i) const {
        if (rows[i] < 0) return -1;
        const auto divisor = static_cast<uint32_t>(top_k < INT32_MAX ? top_k : INT32_MAX);
        return top_k > INT32_MAX ? 0 : static_cast<uint32_t>(rows[i]) / divisor;
    }
};

// Where a token's K rows lie; -1 for none.
struct Slots {
    const int32_t* slots;
    int64_t tokens;
    int64_t top_k;
};

// --- exchange: rows in which matrices lie side by side, each from a multiple of kSectionBytes on
// -----------------------

inline constexpr int64_t kSectionBytes = 16;

// Bytes that a matrix of `bytes` a row takes in a packed row.
DSE_FN int64_t section_of(int64_t bytes) {
    return (bytes + kSectionBytes - 1) / kSectionBytes * kSectionBytes;
}

// A matrix of elements of `size` bytes that are only copied.
struct PackPart {
    const uint8_t* data;
    int64_t rows;
    int64_t columns;
    int64_t size;
    int64_t row_stride;
    int64_t column_stride;

    DSE_FN int64_t width() const { return columns * size; }
};

inline constexpr int64_t kMaxParts = 4;

struct PackParts {
    PackPart part[kMaxParts];
    int64_t count;

    DSE_FN int64_t width() const {
        int64_t bytes = 0;
        for (int64_t p = 0; p < count; ++p) bytes += section_of(part[p].width());
        return bytes;
    }
};

// Packed rows, without gaps between them, of `payload` bytes, `scales` and `weights` FP32 numbers.
struct PackedRows {
    const uint8_t* data;
    int64_t rows;
    int64_t payload;
    int64_t scales;
    int64_t weights;

    DSE_FN int64_t scales_at() const { return section_of(payload); }
    DSE_FN int64_t weights_at() const { return scales_at() + section_of(4 * scales); }
    DSE_FN int64_t width() const { return weights_at() + section_of(4 * weights); }
    DSE_FN const float* floats(int64_t row, int64_t at) const {
        return reinterpret_cast<const float*>(data + row * width() + at);
    }
};

// --- routing: T tokens, E experts in `groups` groups of equal size, K experts a token
// -----------------------

// Router logits [T, E], elements of a row adjacent; they may hold any values.
struct Logits {
    const float* data;
    int64_t tokens;
    int64_t experts;
    int64_t row_stride;

    DSE_FN const float* row(int64_t t) const { return data + t * row_stride; }
};

struct RouteOptions {
    int64_t top_k;
    int64_t groups;
    int64_t kept_groups;
    float scaling_factor;
    bool normalize;
};

// A batch of T = sequences * length tokens, which balance is measured over sequence by sequence. `indices`
// [T, K] must lie in [0, E); `valid` [T] is false for padding, or null.
struct BalanceBatch {
    Logits logits;
    const int32_t* indices;
    int64_t top_k;
    const bool* valid;
    int64_t sequences;

    DSE_FN int64_t length() const { return logits.tokens / sequences; }
    DSE_FN bool is_valid(int64_t t) const { return valid == nullptr || valid[t]; }
};

// --- gemm: out [M, N] = A [M, K] B [N, K]^T
// -----------------------------------------------------------------

// Codes and scales of one operand, whose rows are rows of A or columns of the result. The code of (row, k) is
// at codes[row * row_stride + k * k_stride]; A needs k_stride == 1, B needs k_stride == 1 or row_stride == 1.
// The scale of (row, k) is at scales[row / rows_per_scale * scale_row_stride + k / 128 * scale_k_stride],
// rows_per_scale being 1 (tiles) or 128 (blocks; only B).
struct GemmOperand {
    const uint8_t* codes;
    int64_t row_stride, k_stride;
    const float* scales;
    int64_t scale_row_stride, scale_k_stride;
    int64_t rows_per_scale;
};

enum class GemmStore { kBf16, kFloat, kAccumulate };  // kAccumulate: float, out += product, added once

// Row m of the result is at data + m * row_stride elements, its columns side by side.
struct GemmOutput {
    void* data;
    int64_t row_stride;
    GemmStore store;
};

struct GemmProduct {
    GemmOperand a, b;
    GemmOutput out;
    int64_t m, n, k;
};

// --- optimizer
// ----------------------------------------------------------------------------------------------

// The numbers of an AdamW step, each computed in double precision and rounded once.
struct AdamwConstants {
    float grad_scale;
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float root_factor;  // 1 / sqrt(1 - beta2^step)
    float eps;
    float decay;  // 1 - lr * weight_decay
    float rate;   // lr / (1 - beta1^step)
};

// Moments: FP32, or BF16 where a flag beside them says so.
struct AdamwPointers {
    float* param;
    const float* grad;
    void* exp_avg;
    void* exp_avg_sq;
};

// --- cross_entropy

// The target of a row that has none.
inline constexpr int64_t kIgnoredTarget = -100;

}  // namespace dse
