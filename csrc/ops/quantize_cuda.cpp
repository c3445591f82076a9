// CUDA registration of the quantize family.
#include <tuple>

#include "cuda/quantize.cuh"
#include "ops/cuda.h"
#include "ops/matrix.h"
#include "ops/quantize.h"

namespace dse {
namespace {

// Offsets for the kernels, which clamp them; checked where values are. `offs` must outlive the result.
Groups groups_of(CudaCall& call, const char* op, const std::optional<Tensor>& offs, int64_t rows) {
    if (!offs) return {nullptr, 0};
    call.check_values<int32_t>(
        *offs, [&](const int32_t* ends, int64_t count) { require_ascending(op, ends, count, rows); });
    return {call.in<int32_t>(*offs), offs->size(0)};
}

// w [N, K] or [E, N, K] as a stack of E matrices, `scales` null if there are none.
cuda::Stack stack(const Tensor& w, const Tensor* scales) {
    if (w.dim() == 2) return {1, 0, 0};
    return {w.size(0), w.stride(0), scales == nullptr ? 0 : scales->stride(0)};
}

// The first matrix of a stack of blocks.
CodeMatrix block_matrix(const Tensor& codes, const Tensor& scales) {
    const int64_t n = codes.dim() - 2, k = n + 1;
    return {static_cast<const uint8_t*>(codes.const_data_ptr()),
            static_cast<const float*>(scales.const_data_ptr()),
            codes.size(n),
            codes.size(k),
            codes.stride(n),
            scales.stride(n),
            scales.stride(k),
            kTile};
}

std::tuple<Tensor, Tensor> quantize_tiles(const Tensor& x, bool power_of_2) {
    require_float_rows("quantize_tiles", x);
    CudaCall call("quantize_tiles", x);
    auto [codes, scales] = new_tiles(x, shape_of(x));
    const Tensor rows = walkable(x);
    cuda::quantize_tiles(float_matrix(call.in(rows)), power_of_2, call.out<uint8_t>(codes),
                         scale_matrix(call.out(scales)), call.stream());
    call.finish();
    return {codes, scales};
}

std::tuple<Tensor, Tensor> quantize_tiles_transposed(const Tensor& x, const std::optional<Tensor>& offs,
                                                     bool power_of_2) {
    require_float_groups("quantize_tiles_transposed", x, offs);
    CudaCall call("quantize_tiles_transposed", x);
    const std::optional<Tensor> ends = packed(offs);
    const Groups groups = groups_of(call, "quantize_tiles_transposed", ends, x.size(0));
    auto [codes_t, scales_t] = new_transposed(x, x.size(0), x.size(1), offs);
    const Tensor rows = walkable(x);
    cuda::quantize_tiles_transposed(float_matrix(call.in(rows)), groups, power_of_2,
                                    call.out<uint8_t>(codes_t), scale_matrix(call.out(scales_t)),
                                    call.stream());
    call.finish();
    return {codes_t, scales_t};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> quantize_tiles_both(const Tensor& x,
                                                               const std::optional<Tensor>& offs,
                                                               bool power_of_2) {
    require_float_groups("quantize_tiles_both", x, offs);
    CudaCall call("quantize_tiles_both", x);
    const std::optional<Tensor> ends = packed(offs);
    const Groups groups = groups_of(call, "quantize_tiles_both", ends, x.size(0));
    const int64_t m = x.size(0), k = x.size(1);
    auto [codes, scales] = new_tiles(x, {m, k});
    auto [codes_t, scales_t] = new_transposed(x, m, k, offs);
    const Tensor rows = walkable(x);
    cuda::quantize_tiles_both(float_matrix(call.in(rows)), groups, power_of_2, call.out<uint8_t>(codes),
                              scale_matrix(call.out(scales)), call.out<uint8_t>(codes_t),
                              scale_matrix(call.out(scales_t)), call.stream());
    call.finish();
    return {codes, scales, codes_t, scales_t};
}

std::tuple<Tensor, Tensor> quantize_blocks(const Tensor& w, bool power_of_2) {
    require_float_weight("quantize_blocks", w);
    CudaCall call("quantize_blocks", w);
    auto [codes, scales] = new_blocks(w, shape_of(w));
    const Tensor rows = stack_of(w);
    const bool stacked = w.dim() == 3;
    const FloatMatrix matrix{call.in<void>(rows), float_type(w.scalar_type()), w.size(stacked),
                             w.size(stacked + 1), rows.stride(stacked)};
    cuda::quantize_blocks(matrix, stack(rows, nullptr), power_of_2, call.out<uint8_t>(codes),
                          scale_matrix(call.out(scales)), call.stream());
    call.finish();
    return {codes, scales};
}

std::tuple<Tensor, Tensor> transpose_blocks(const Tensor& codes, const Tensor& scales) {
    require_blocks("transpose_blocks", codes, scales);
    CudaCall call("transpose_blocks", codes);
    auto [codes_t, scales_t] = new_transposed_blocks(codes);
    const Tensor rows = stack_of(codes);
    cuda::transpose_blocks(block_matrix(call.in(rows), call.in(scales)), stack(rows, &scales),
                           call.out<uint8_t>(codes_t), scale_matrix(call.out(scales_t)), call.stream());
    call.finish();
    return {codes_t, scales_t};
}

Tensor dequantize_tiles(const Tensor& codes, const Tensor& scales, ScalarType dtype) {
    require_tiles("dequantize_tiles", codes, scales);
    require_target("dequantize_tiles", dtype);
    CudaCall call("dequantize_tiles", codes);
    Tensor out = new_tensor(codes, shape_of(codes), dtype);
    const Tensor rows = walkable(codes), row_scales = walkable_scales(scales);
    cuda::dequantize(code_matrix(call.in(rows), call.in(row_scales), 1), {1, 0, 0}, float_type(dtype),
                     call.out<void>(out), call.stream());
    call.finish();
    return out;
}

Tensor dequantize_blocks(const Tensor& codes, const Tensor& scales, ScalarType dtype) {
    require_blocks("dequantize_blocks", codes, scales);
    require_target("dequantize_blocks", dtype);
    CudaCall call("dequantize_blocks", codes);
    Tensor out = new_tensor(codes, shape_of(codes), dtype);
    const Tensor rows = stack_of(codes);
    cuda::dequantize(block_matrix(call.in(rows), call.in(scales)), stack(rows, &scales), float_type(dtype),
                     call.out<void>(out), call.stream());
    call.finish();
    return out;
}

std::tuple<Tensor, Tensor> retile(const Tensor& codes, const Tensor& scales,
                                  const std::optional<Tensor>& offs, bool power_of_2) {
    require_retile("retile", codes, scales, offs);
    CudaCall call("retile", codes);
    const std::optional<Tensor> ends = packed(offs);
    const Groups groups = groups_of(call, "retile", ends, codes.size(0));
    auto [codes_t, scales_t] = new_transposed(codes, codes.size(0), codes.size(1), offs);
    const Tensor rows = walkable(codes);
    cuda::retile(code_matrix(call.in(rows), call.in(scales), 1), groups, power_of_2,
                 call.out<uint8_t>(codes_t), scale_matrix(call.out(scales_t)), call.stream());
    call.finish();
    return {codes_t, scales_t};
}

std::tuple<Tensor, Tensor> quantize_e5m6(const Tensor& x) {
    require_float_rows("quantize_e5m6", x);
    CudaCall call("quantize_e5m6", x);
    auto [packed, scales] = new_packed(x);
    const Tensor rows = walkable(x);
    cuda::quantize_e5m6(float_matrix(call.in(rows)), call.out<uint8_t>(packed),
                        scale_matrix(call.out(scales)), call.stream());
    call.finish();
    return {packed, scales};
}

Tensor dequantize_e5m6(const Tensor& packed, const Tensor& scales, int64_t k, ScalarType dtype) {
    require_packed("dequantize_e5m6", packed, scales, k);
    require_target("dequantize_e5m6", dtype);
    CudaCall call("dequantize_e5m6", packed);
    Tensor out = new_unpacked(packed, k, dtype);
    const Tensor rows = walkable(packed), row_scales = walkable_scales(scales);
    cuda::dequantize_e5m6(packed_matrix(call.in(rows), call.in(row_scales), k), float_type(dtype),
                          call.out<void>(out), call.stream());
    call.finish();
    return out;
}

std::tuple<Tensor, Tensor> retile_e5m6(const Tensor& packed, const Tensor& scales, int64_t k,
                                       bool power_of_2) {
    require_matrix("retile_e5m6", "packed", packed);
    require_packed("retile_e5m6", packed, scales, k);
    CudaCall call("retile_e5m6", packed);
    auto [codes_t, scales_t] = new_transposed(packed, packed.size(0), k, std::nullopt);
    const Tensor rows = walkable(packed);
    cuda::retile_e5m6(packed_matrix(call.in(rows), call.in(scales), k), power_of_2,
                      call.out<uint8_t>(codes_t), scale_matrix(call.out(scales_t)), call.stream());
    call.finish();
    return {codes_t, scales_t};
}

}  // namespace
}  // namespace dse

DSE_CUDA_KERNELS(m) {
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
