// Schemas and CPU registration of the quantize family.
#include "cpu/quantize.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/matrix.h"
#include "ops/parallel.h"
#include "ops/quantize.h"

namespace dse {
namespace {

uint8_t* bytes(const Tensor& codes) { return static_cast<uint8_t*>(codes.mutable_data_ptr()); }
float* floats(const Tensor& scales) { return static_cast<float*>(scales.mutable_data_ptr()); }

// Checked offsets; `offs` must outlive the result.
Groups groups_of(const char* op, const std::optional<Tensor>& offs, int64_t rows) {
    if (!offs) return {nullptr, 0};
    const auto* ends = static_cast<const int32_t*>(offs->const_data_ptr());
    require_ascending(op, ends, offs->size(0), rows);
    return {ends, offs->size(0)};
}

std::tuple<Tensor, Tensor> quantize_tiles(const Tensor& x, bool power_of_2) {
    require_float_rows("quantize_tiles", x);
    auto [codes, scales] = new_tiles(x, shape_of(x));
    const Tensor rows = walkable(x);
    cpu::quantize_tiles(float_matrix(rows), power_of_2, bytes(codes), floats(scales), torch_threads());
    return {codes, scales};
}

std::tuple<Tensor, Tensor> quantize_tiles_transposed(const Tensor& x, const std::optional<Tensor>& offs,
                                                     bool power_of_2) {
    require_float_groups("quantize_tiles_transposed", x, offs);
    const std::optional<Tensor> ends = packed(offs);
    const Groups groups = groups_of("quantize_tiles_transposed", ends, x.size(0));
    auto [codes_t, scales_t] = new_transposed(x, x.size(0), x.size(1), offs);
    const Tensor rows = walkable(x);
    cpu::quantize_tiles_transposed(float_matrix(rows), groups, power_of_2, bytes(codes_t), floats(scales_t),
                                   torch_threads());
    return {codes_t, scales_t};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> quantize_tiles_both(const Tensor& x,
                                                               const std::optional<Tensor>& offs,
                                                               bool power_of_2) {
    require_float_groups("quantize_tiles_both", x, offs);
    const std::optional<Tensor> ends = packed(offs);
    const Groups groups = groups_of("quantize_tiles_both", ends, x.size(0));
    const int64_t m = x.size(0), k = x.size(1);
    auto [codes, scales] = new_tiles(x, {m, k});
    auto [codes_t, scales_t] = new_transposed(x, m, k, offs);
    const Tensor rows = walkable(x);
    cpu::quantize_tiles_both(float_matrix(rows), groups, power_of_2, bytes(codes), floats(scales),
                             bytes(codes_t), floats(scales_t), torch_threads());
    return {codes, scales, codes_t, scales_t};
}

std::tuple<Tensor, Tensor> quantize_blocks(const Tensor& w, bool power_of_2) {
    require_float_weight("quantize_blocks", w);
    auto [codes, scales] = new_blocks(w, shape_of(w));
    const Tensor rows = stack_of(w);
    const bool stacked = w.dim() == 3;
    const FloatMatrix matrix{rows.const_data_ptr(), float_type(w.scalar_type()), w.size(stacked),
                             w.size(stacked + 1), rows.stride(stacked)};
    cpu::quantize_blocks(matrix, stacked ? w.size(0) : 1, stacked ? rows.stride(0) : 0, power_of_2,
                         bytes(codes), floats(scales), torch_threads());
    return {codes, scales};
}

std::tuple<Tensor, Tensor> transpose_blocks(const Tensor& codes, const Tensor& scales) {
    require_blocks("transpose_blocks", codes, scales);
    auto [codes_t, scales_t] = new_transposed_blocks(codes);
    const Tensor rows = stack_of(codes);
    const bool stacked = codes.dim() == 3;
    const int64_t count = stacked ? codes.size(0) : 1, n = codes.size(stacked), k = codes.size(stacked + 1);
    for (int64_t e = 0; e < count; ++e) {
        const auto* from =
            static_cast<const uint8_t*>(rows.const_data_ptr()) + (stacked ? e * rows.stride(0) : 0);
        cpu::transpose_bytes(from, n, k, rows.stride(stacked), bytes(codes_t) + e * n * k, torch_threads());
        const auto* scale =
            static_cast<const float*>(scales.const_data_ptr()) + (stacked ? e * scales.stride(0) : 0);
        float* out = floats(scales_t) + e * num_tiles(n) * num_tiles(k);
        for (int64_t j = 0; j < num_tiles(k); ++j)
            for (int64_t i = 0; i < num_tiles(n); ++i)
                *out++ = scale[i * scales.stride(stacked) + j * scales.stride(stacked + 1)];
    }
    return {codes_t, scales_t};
}

Tensor dequantize_tiles(const Tensor& codes, const Tensor& scales, ScalarType dtype) {
    require_tiles("dequantize_tiles", codes, scales);
    require_target("dequantize_tiles", dtype);
    Tensor out = new_tensor(codes, shape_of(codes), dtype);
    const Tensor rows = walkable(codes), row_scales = walkable_scales(scales);
    cpu::dequantize(code_matrix(rows, row_scales, 1), float_type(dtype), out.mutable_data_ptr(),
                    torch_threads());
    return out;
}

Tensor dequantize_blocks(const Tensor& codes, const Tensor& scales, ScalarType dtype) {
    require_blocks("dequantize_blocks", codes, scales);
    require_target("dequantize_blocks", dtype);
    Tensor out = new_tensor(codes, shape_of(codes), dtype);
    const Tensor rows = stack_of(codes);
    const bool stacked = codes.dim() == 3;
    const int64_t n = codes.size(stacked), k = codes.size(stacked + 1);
    for (int64_t e = 0; e < (stacked ? codes.size(0) : 1); ++e) {
        const CodeMatrix matrix{
            static_cast<const uint8_t*>(rows.const_data_ptr()) + (stacked ? e * rows.stride(0) : 0),
            static_cast<const float*>(scales.const_data_ptr()) + (stacked ? e * scales.stride(0) : 0),
            n,
            k,
            rows.stride(stacked),
            scales.stride(stacked),
            scales.stride(stacked + 1),
            kTile};
        cpu::dequantize(matrix, float_type(dtype),
                        static_cast<uint8_t*>(out.mutable_data_ptr()) + e * n * k * out.element_size(),
                        torch_threads());
    }
    return out;
}

std::tuple<Tensor, Tensor> retile(const Tensor& codes, const Tensor& scales,
                                  const std::optional<Tensor>& offs, bool power_of_2) {
    require_retile("retile", codes, scales, offs);
    const std::optional<Tensor> ends = packed(offs);
    const Groups groups = groups_of("retile", ends, codes.size(0));
    auto [codes_t, scales_t] = new_transposed(codes, codes.size(0), codes.size(1), offs);
    const Tensor rows = walkable(codes);
    cpu::retile(code_matrix(rows, scales, 1), groups, power_of_2, bytes(codes_t), floats(scales_t),
                torch_threads());
    return {codes_t, scales_t};
}

std::tuple<Tensor, Tensor> quantize_e5m6(const Tensor& x) {
    require_float_rows("quantize_e5m6", x);
    auto [packed, scales] = new_packed(x);
    const Tensor rows = walkable(x);
    cpu::quantize_e5m6(float_matrix(rows), bytes(packed), floats(scales), torch_threads());
    return {packed, scales};
}

Tensor dequantize_e5m6(const Tensor& packed, const Tensor& scales, int64_t k, ScalarType dtype) {
    require_packed("dequantize_e5m6", packed, scales, k);
    require_target("dequantize_e5m6", dtype);
    Tensor out = new_unpacked(packed, k, dtype);
    const Tensor rows = walkable(packed), row_scales = walkable_scales(scales);
    cpu::dequantize_e5m6(packed_matrix(rows, row_scales, k), float_type(dtype), out.mutable_data_ptr(),
                         torch_threads());
    return out;
}

std::tuple<Tensor, Tensor> retile_e5m6(const Tensor& packed, const Tensor& scales, int64_t k,
                                       bool power_of_2) {
    require_matrix("retile_e5m6", "packed", packed);
    require_packed("retile_e5m6", packed, scales, k);
    auto [codes_t, scales_t] = new_transposed(packed, packed.size(0), k, std::nullopt);
    const Tensor rows = walkable(packed);
    cpu::retile_e5m6(packed_matrix(rows, scales, k), power_of_2, bytes(codes_t), floats(scales_t),
                     torch_threads());
    return {codes_t, scales_t};
}

}  // namespace
}  // namespace dse

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def("quantize_tiles(Tensor x, *, bool power_of_2=False) -> (Tensor codes, Tensor scales)");
    m.def(
        "quantize_tiles_transposed(Tensor x, Tensor? offs=None, *, bool power_of_2=False) -> "
        "(Tensor codes_t, Tensor scales_t)");
    m.def(
        "quantize_tiles_both(Tensor x, Tensor? offs=None, *, bool power_of_2=False) -> "
        "(Tensor codes, Tensor scales, Tensor codes_t, Tensor scales_t)");
    m.def("quantize_blocks(Tensor w, *, bool power_of_2=False) -> (Tensor codes, Tensor scales)");
    m.def("transpose_blocks(Tensor codes, Tensor scales) -> (Tensor codes_t, Tensor scales_t)");
    m.def("dequantize_tiles(Tensor codes, Tensor scales, ScalarType dtype) -> Tensor");
    m.def("dequantize_blocks(Tensor codes, Tensor scales, ScalarType dtype) -> Tensor");
    m.def(
        "retile(Tensor codes, Tensor scales, Tensor? offs=None, *, bool power_of_2=True) -> "
        "(Tensor codes_t, Tensor scales_t)");
    m.def("quantize_e5m6(Tensor x) -> (Tensor packed, Tensor scales)");
    m.def("dequantize_e5m6(Tensor packed, Tensor scales, SymInt k, ScalarType dtype) -> Tensor");
    m.def(
        "retile_e5m6(Tensor packed, Tensor scales, SymInt k, *, bool power_of_2=True) -> "
        "(Tensor codes_t, Tensor scales_t)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("quantize_tiles", TORCH_BOX(&dse::quantize_tiles));
    m.impl("quantize_tiles_transposed", TORCH_BOX(&dse::quantize_tiles_transposed));
    m.impl("quantize_tiles_both", TORCH_BOX(&dse::quantize_tiles_both));
    m.impl("quantize_blocks", TORCH_BOX(&dse::quantize_blocks));
    m.impl("transpose_blocks", TORCH_BOX(&dse::transpose_blocks));
    m.impl("dequantize_tiles", TORCH_BOX(&dse::dequantize_tiles));
    m.impl("dequantize_blocks", TORCH_BOX(&dse::dequantize_blocks));
    m.impl("retile", TORCH_BOX(&dse::retile));
    m.impl("quantize_e5m6", TORCH_BOX(&dse::quantize_e5m6));
    m.impl("dequantize_e5m6", TORCH_BOX(&dse::dequantize_e5m6));
    m.impl("retile_e5m6", TORCH_BOX(&dse::retile_e5m6));
}
