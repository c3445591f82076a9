// What the cross_entropy family asks of its arguments; deepseek_ext/ops/cross_entropy.py says the same of
// fake tensors, in the same words.
#pragma once
#include "ops/matrix.h"
#include "ops/new_tensor.h"
#include "ops/require.h"

namespace dse::cross_entropy {

inline void check_adjacent(const char* op, const Tensor& logits) {
    DSE_REQUIRE(logits.size(1) == 1 || logits.stride(1) == 1, op,
                ": logits must have adjacent columns, since they are written in place; call .contiguous()");
}

inline void check_cross_entropy(const char* op, const Tensor& logits, const Tensor& targets) {
    require_float(op, "logits", logits);
    DSE_REQUIRE(logits.dim() == 2 && logits.size(1) > 0, op, ": logits must be [M, V] with V > 0, got ",
                describe(logits), "; flatten the leading dimensions into M");
    DSE_REQUIRE(targets.scalar_type() == ScalarType::Long, op, ": targets must be int64, got ",
                describe(targets.scalar_type()), "; convert it with .long()");
    DSE_REQUIRE(targets.dim() == 1 && targets.size(0) == logits.size(0), op,
                ": targets must be [M] = ", describe(std::vector<int64_t>{logits.size(0)}), ", got ",
                describe(targets), "; pass one class for each row");
    check_adjacent(op, logits);
}

// The values of targets, where the host can read them.
inline void check_classes(const char* op, const int64_t* classes, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i)
        DSE_REQUIRE((classes[i] >= 0 && classes[i] < columns) || classes[i] == kIgnoredTarget, op,
                    ": targets[", i, "] must be between 0 and V - 1 = ", columns - 1, ", or ", kIgnoredTarget,
                    ", got ", classes[i], "; pass the classes of these logits");
}

// Logits to be written.
inline FloatMatrix written_in_place(const Tensor& logits) {
    FloatMatrix rows = float_matrix(logits);
    rows.data = logits.mutable_data_ptr();
    return rows;
}

inline Tensor new_losses(const Tensor& logits) {
    return new_tensor(logits, {logits.size(0)}, ScalarType::Float);
}
inline Tensor new_choices(const Tensor& logits) {
    return new_tensor(logits, {logits.size(0)}, ScalarType::Long);
}

}  // namespace dse::cross_entropy
