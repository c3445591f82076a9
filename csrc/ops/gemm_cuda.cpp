// CUDA registration of the gemm family.
#include <optional>

#include "cuda/gemm.cuh"
#include "ops/cuda.h"
#include "ops/gemm.h"

namespace dse::gemm {
namespace {

// `out` is known to `call`.
void run_dense(CudaCall& call, const Tensor& out, GemmStore store, const Tensor& a, const Tensor& a_scales,
               const Tensor& b, const Tensor& b_scales, int64_t rows_per_scale) {
    const Tensor a_codes = readable(a, false), b_codes = readable(b, true);
    cuda::gemm({operand(call.in(a_codes), call.in(a_scales), 1),
                operand(call.in(b_codes), call.in(b_scales), rows_per_scale), output(out, store), a.size(0),
                b.size(0), a.size(1)},
               call.stream());
    call.finish();
}

Tensor gemm(const Tensor& a, const Tensor& a_scales, const Tensor& b, const Tensor& b_scales,
            ScalarType out_dtype) {
    const int64_t rows_per_scale = check_operands("gemm", a, a_scales, b, b_scales);
    check_out_dtype("gemm", out_dtype);
    CudaCall call("gemm", a);
    const Tensor out = new_tensor(a, {a.size(0), b.size(0)}, out_dtype);
    run_dense(call, call.out(out), store_of(out), a, a_scales, b, b_scales, rows_per_scale);
    return out;
}

void gemm_accumulate_(const Tensor& out, const Tensor& a, const Tensor& a_scales, const Tensor& b,
                      const Tensor& b_scales) {
    const char* op = "gemm_accumulate_";
    const int64_t rows_per_scale = check_operands(op, a, a_scales, b, b_scales);
    check_out(op, out, "[M, N]", {a.size(0), b.size(0)});
    CudaCall call(op, out);
    run_dense(call, call.inout(out), GemmStore::kAccumulate, a, a_scales, b, b_scales, rows_per_scale);
}

Tensor grouped_gemm(const Tensor& a, const Tensor& a_scales, const Tensor& b, const Tensor& b_scales,
                    const Tensor& offs, ScalarType out_dtype) {
    const char* op = "grouped_gemm";
    check_grouped(op, a, a_scales, b, b_scales, offs);
    check_out_dtype(op, out_dtype);
    CudaCall call(op, a);
    call.check_values<int32_t>(
        offs, [&](const int32_t* ends, int64_t count) { check_ends(op, {ends, 1, count}, a.size(0), "M"); });
    const Tensor a_codes = readable(a, false), b_codes = readable(b, true);
    const Tensor out = new_tensor(a, {a.size(0), b.size(1)}, out_dtype);
    cuda::grouped_gemm(
        {operand(call.in(a_codes), call.in(a_scales), 1), operand(call.in(b_codes), call.in(b_scales), kTile),
         output(call.out(out), store_of(out)), a.size(0), b.size(1), a.size(1)},
        offs.size(0), call.in<int32_t>(offs), offs.stride(0), b_codes.stride(0), b_scales.stride(0),
        call.stream());
    call.finish();
    return out;
}

void check_columns(CudaCall& call, const char* op, const Tensor& offs, int64_t columns) {
    call.check_values<int32_t>(offs, [&](const int32_t* ends, int64_t count) {
        gemm::check_columns(op, {ends, 1, count}, columns);
    });
}

// `out` is known to `call`.
void run_wgrad(CudaCall& call, const Tensor& out, GemmStore store, const Tensor& a_t,
               const Tensor& a_scales_t, const Tensor& b_t, const Tensor& b_scales_t, const Tensor& offs) {
    const Tensor a_codes = readable(a_t, false), b_codes = readable(b_t, false);
    cuda::grouped_gemm_wgrad(
        {operand(call.in(a_codes), call.in(a_scales_t), 1), operand(call.in(b_codes), call.in(b_scales_t), 1),
         output(out, store), a_t.size(0), b_t.size(0), a_t.size(1)},
        offs.size(0), call.in<int32_t>(offs), offs.stride(0), out.stride(0), call.stream());
    call.finish();
}

Tensor grouped_gemm_wgrad(const Tensor& a_t, const Tensor& a_scales_t, const Tensor& b_t,
                          const Tensor& b_scales_t, const Tensor& offs) {
    const char* op = "grouped_gemm_wgrad";
    check_wgrad(op, a_t, a_scales_t, b_t, b_scales_t, offs);
    CudaCall call(op, a_t);
    check_columns(call, op, offs, a_t.size(1));
    const Tensor out = new_tensor(a_t, {offs.size(0), a_t.size(0), b_t.size(0)}, ScalarType::Float);
    run_wgrad(call, call.out(out), GemmStore::kFloat, a_t, a_scales_t, b_t, b_scales_t, offs);
    return out;
}

void grouped_gemm_wgrad_accumulate_(const Tensor& out, const Tensor& a_t, const Tensor& a_scales_t,
                                    const Tensor& b_t, const Tensor& b_scales_t, const Tensor& offs) {
    const char* op = "grouped_gemm_wgrad_accumulate_";
    check_wgrad(op, a_t, a_scales_t, b_t, b_scales_t, offs);
    check_out(op, out, "[E, N, K]", {offs.size(0), a_t.size(0), b_t.size(0)});
    CudaCall call(op, out);
    check_columns(call, op, offs, a_t.size(1));
    run_wgrad(call, call.inout(out), GemmStore::kAccumulate, a_t, a_scales_t, b_t, b_scales_t, offs);
}

}  // namespace
}  // namespace dse::gemm

DSE_CUDA_KERNELS(m) {
    m.impl("gemm", TORCH_BOX(&dse::gemm::gemm));
    m.impl("gemm_accumulate_", TORCH_BOX(&dse::gemm::gemm_accumulate_));
    m.impl("grouped_gemm", TORCH_BOX(&dse::gemm::grouped_gemm));
    m.impl("grouped_gemm_wgrad", TORCH_BOX(&dse::gemm::grouped_gemm_wgrad));
    m.impl("grouped_gemm_wgrad_accumulate_", TORCH_BOX(&dse::gemm::grouped_gemm_wgrad_accumulate_));
}
