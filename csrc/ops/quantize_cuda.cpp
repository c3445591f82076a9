// CUDA registration of the quantize family.
#include <tuple>

#include "cuda/quantize.cuh"
#include "ops/cuda.h"
#include "ops/matrix.h"
#include "ops/quantize.h"

namespace dse {
namespace {

std::tuple<Tensor, Tensor> quantize_tiles(const Tensor& x, bool power_of_2) {
    require_rows("quantize_tiles", "x", x);
    require_float("quantize_tiles", "x", x);
    CudaCall call("quantize_tiles", x);
    Shape shape = shape_of(x);
    Tensor codes = new_codes(x, shape);
    shape.back() = num_tiles(shape.back());
    Tensor scales = new_scales(x, shape);
    const Tensor rows = walkable(x);
    cuda::quantize_tiles(float_matrix(call.in(rows)), power_of_2, call.out<uint8_t>(codes),
                         scale_matrix(call.out(scales)), call.stream());
    call.finish();
    return {codes, scales};
}

Tensor dequantize_tiles(const Tensor& codes, const Tensor& scales, ScalarType dtype) {
    require_tiles("dequantize_tiles", codes, scales);
    require_target("dequantize_tiles", dtype);
    CudaCall call("dequantize_tiles", codes);
    Tensor out = torch::stable::new_empty(codes, shape_of(codes), dtype);
    const Tensor rows = walkable(codes), row_scales = walkable_scales(scales);
    cuda::dequantize(code_matrix(call.in(rows), call.in(row_scales), 1), float_type(dtype),
                     call.out<void>(out), call.stream());
    call.finish();
    return out;
}

std::tuple<Tensor, Tensor> quantize_e5m6(const Tensor& x) {
    require_rows("quantize_e5m6", "x", x);
    require_float("quantize_e5m6", "x", x);
    CudaCall call("quantize_e5m6", x);
    Shape shape = shape_of(x);
    const int64_t k = shape.back();
    shape.back() = e5m6_row_bytes(k);
    Tensor packed = torch::stable::new_empty(x, shape, ScalarType::Byte);
    shape.back() = num_tiles(k);
    Tensor scales = new_scales(x, shape);
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
    Shape shape = shape_of(packed);
    shape.back() = k;
    Tensor out = torch::stable::new_empty(packed, shape, dtype);
    const Tensor rows = walkable(packed), row_scales = walkable_scales(scales);
    cuda::dequantize_e5m6(packed_matrix(call.in(rows), call.in(row_scales), k), float_type(dtype),
                          call.out<void>(out), call.stream());
    call.finish();
    return out;
}

}  // namespace
}  // namespace dse

DSE_CUDA_KERNELS(m) {
    m.impl("quantize_tiles", TORCH_BOX(&dse::quantize_tiles));
    m.impl("dequantize_tiles", TORCH_BOX(&dse::dequantize_tiles));
    m.impl("quantize_e5m6", TORCH_BOX(&dse::quantize_e5m6));
    m.impl("dequantize_e5m6", TORCH_BOX(&dse::dequantize_e5m6));
}
