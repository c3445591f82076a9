// Schemas of the gemm family and its CPU kernels.
#include "ops/gemm.h"

#include <torch/csrc/stable/library.h>

#include "cpu/gemm.h"
#include "ops/parallel.h"

namespace dse::gemm {
namespace {

Ends ends_of(const Tensor& offs) { return {offs.const_data_ptr<int32_t>(), offs.stride(0), offs.size(0)}; }

void run_dense(const Tensor& out, GemmStore store, const Tensor& a, const Tensor& a_scales, const Tensor& b,
               const Tensor& b_scales, int64_t rows_per_scale) {
    const Tensor a_codes = readable(a, false), b_codes = readable(b, true);
    cpu::gemm({operand(a_codes, a_scales, 1), operand(b_codes, b_scales, rows_per_scale), output(out, store),
               a.size(0), b.size(0), a.size(1)},
              torch_threads());
}

Tensor gemm(const Tensor& a, const Tensor& a_scales, const Tensor& b, const Tensor& b_scales,
            ScalarType out_dtype) {
    const int64_t rows_per_scale = check_operands("gemm", a, a_scales, b, b_scales);
    check_out_dtype("gemm", out_dtype);
    const Tensor out = new_tensor(a, {a.size(0), b.size(0)}, out_dtype);
    run_dense(out, store_of(out), a, a_scales, b, b_scales, rows_per_scale);
    return out;
}

void gemm_accumulate_(const Tensor& out, const Tensor& a, const Tensor& a_scales, const Tensor& b,
                      const Tensor& b_scales) {
    const char* op = "gemm_accumulate_";
    const int64_t rows_per_scale = check_operands(op, a, a_scales, b, b_scales);
    check_out(op, out, "[M, N]", {a.size(0), b.size(0)});
    run_dense(out, GemmStore::kAccumulate, a, a_scales, b, b_scales, rows_per_scale);
}

Tensor grouped_gemm(const Tensor& a, const Tensor& a_scales, const Tensor& b, const Tensor& b_scales,
                    const Tensor& offs, ScalarType out_dtype) {
    const char* op = "grouped_gemm";
    check_grouped(op, a, a_scales, b, b_scales, offs);
    check_out_dtype(op, out_dtype);
    check_ends(op, ends_of(offs), a.size(0), "M");
    const Tensor a_codes = readable(a, false), b_codes = readable(b, true);
    const Tensor out = new_tensor(a, {a.size(0), b.size(1)}, out_dtype);
    cpu::grouped_gemm({operand(a_codes, a_scales, 1), operand(b_codes, b_scales, kTile),
                       output(out, store_of(out)), a.size(0), b.size(1), a.size(1)},
                      offs.size(0), offs.const_data_ptr<int32_t>(), offs.stride(0), b_codes.stride(0),
                      b_scales.stride(0), torch_threads());
    return out;
}

void run_wgrad(const Tensor& out, GemmStore store, const Tensor& a_t, const Tensor& a_scales_t,
               const Tensor& b_t, const Tensor& b_scales_t, const Tensor& offs) {
    const Tensor a_codes = readable(a_t, false), b_codes = readable(b_t, false);
    cpu::grouped_gemm_wgrad({operand(a_codes, a_scales_t, 1), operand(b_codes, b_scales_t, 1),
                             output(out, store), a_t.size(0), b_t.size(0), a_t.size(1)},
                            offs.size(0), offs.const_data_ptr<int32_t>(), offs.stride(0), out.stride(0),
                            torch_threads());
}

Tensor grouped_gemm_wgrad(const Tensor& a_t, const Tensor& a_scales_t, const Tensor& b_t,
                          const Tensor& b_scales_t, const Tensor& offs) {
    const char* op = "grouped_gemm_wgrad";
    check_wgrad(op, a_t, a_scales_t, b_t, b_scales_t, offs);
    check_columns(op, ends_of(offs), a_t.size(1));
    const Tensor out = new_tensor(a_t, {offs.size(0), a_t.size(0), b_t.size(0)}, ScalarType::Float);
    run_wgrad(out, GemmStore::kFloat, a_t, a_scales_t, b_t, b_scales_t, offs);
    return out;
}

void grouped_gemm_wgrad_accumulate_(const Tensor& out, const Tensor& a_t, const Tensor& a_scales_t,
                                    const Tensor& b_t, const Tensor& b_scales_t, const Tensor& offs) {
    const char* op = "grouped_gemm_wgrad_accumulate_";
    check_wgrad(op, a_t, a_scales_t, b_t, b_scales_t, offs);
    check_out(op, out, "[E, N, K]", {offs.size(0), a_t.size(0), b_t.size(0)});
    check_columns(op, ends_of(offs), a_t.size(1));
    run_wgrad(out, GemmStore::kAccumulate, a_t, a_scales_t, b_t, b_scales_t, offs);
}

}  // namespace
}  // namespace dse::gemm

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def(
        "gemm(Tensor a, Tensor a_scales, Tensor b, Tensor b_scales, *, ScalarType out_dtype=bfloat16) -> "
        "Tensor");
    m.def("gemm_accumulate_(Tensor(a!) out, Tensor a, Tensor a_scales, Tensor b, Tensor b_scales) -> ()");
    m.def(
        "grouped_gemm(Tensor a, Tensor a_scales, Tensor b, Tensor b_scales, Tensor offs, *, "
        "ScalarType out_dtype=bfloat16) -> Tensor");
    m.def(
        "grouped_gemm_wgrad(Tensor a_t, Tensor a_scales_t, Tensor b_t, Tensor b_scales_t, Tensor offs) -> "
        "Tensor");
    m.def(
        "grouped_gemm_wgrad_accumulate_(Tensor(a!) out, Tensor a_t, Tensor a_scales_t, Tensor b_t, "
        "Tensor b_scales_t, Tensor offs) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("gemm", TORCH_BOX(&dse::gemm::gemm));
    m.impl("gemm_accumulate_", TORCH_BOX(&dse::gemm::gemm_accumulate_));
    m.impl("grouped_gemm", TORCH_BOX(&dse::gemm::grouped_gemm));
    m.impl("grouped_gemm_wgrad", TORCH_BOX(&dse::gemm::grouped_gemm_wgrad));
    m.impl("grouped_gemm_wgrad_accumulate_", TORCH_BOX(&dse::gemm::grouped_gemm_wgrad_accumulate_));
}
