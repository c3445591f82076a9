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

}  // namespace
}  // namespace dse

DSE_CUDA_KERNELS(m) { m.impl("quantize_tiles", TORCH_BOX(&dse::quantize_tiles)); }
