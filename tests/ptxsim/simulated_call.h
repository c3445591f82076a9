// CudaCall for the simulator: the tensors lie in the CPU's memory, and the simulator learns of each which
// bytes a kernel may touch, and how. See csrc/ops/cuda.h, whose class this stands in for.
//
// Bounds are those of the view: of a matrix with gaps between its rows, the gaps are out of bounds.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "cudart.h"

#define DSE_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(deepseek_ext_sim, CPU, m)

namespace dse {

class CudaCall {
  public:
    using Tensor = torch::stable::Tensor;

    CudaCall(const char* op, const Tensor&) : op_(op) { ptxsim_forget_buffers(); }
    ~CudaCall() { ptxsim_forget_buffers(); }
    CudaCall(const CudaCall&) = delete;
    CudaCall& operator=(const CudaCall&) = delete;

    cudaStream_t stream() const { return nullptr; }

    const Tensor& in(const Tensor& x) { return add(x, PTXSIM_READABLE); }
    const Tensor& out(const Tensor& x) { return add(x, kScratch, true); }
    const Tensor& inout(const Tensor& x) { return add(x, PTXSIM_READABLE | PTXSIM_WRITABLE); }
    const Tensor& scratch(const Tensor& x) { return add(x, kScratch); }

    template <class T>
    const T* in(const Tensor& x) {
        return static_cast<const T*>(in(x).const_data_ptr());
    }
    template <class T>
    T* out(const Tensor& x) {
        return static_cast<T*>(out(x).mutable_data_ptr());
    }
    template <class T>
    T* inout(const Tensor& x) {
        return static_cast<T*>(inout(x).mutable_data_ptr());
    }
    template <class T>
    T* scratch(const Tensor& x) {
        return static_cast<T*>(scratch(x).mutable_data_ptr());
    }

    static bool checking() { return is_checking(); }

    template <class T>
    std::vector<T> values(const Tensor& x) {
        const T* data = static_cast<const T*>(x.const_data_ptr());
        return {data, data + x.numel()};
    }

    // Runs what was launched; an `out` of which a byte was left unwritten is an error too.
    void finish() {
        const cudaError_t launched = cudaGetLastError();
        if (launched != cudaSuccess)
            fail_with(std::string(cudaGetErrorString(launched)) + " " + ptxsim_error());
        if (ptxsim_synchronize() != 0) fail_with(ptxsim_error());
        for (const auto& [begin, bytes] : outputs_) {
            size_t offset = 0;
            if (ptxsim_unwritten(begin, &offset) != 0)
                fail_with("UNWRITTEN: byte " + std::to_string(offset) + " of " + std::to_string(bytes) +
                          " adjacent ones of a result was never written");
        }
        ptxsim_forget_buffers();
    }

  private:
    static constexpr int kScratch = PTXSIM_READABLE | PTXSIM_WRITABLE | PTXSIM_UNINITIALISED;

    // Registers x as its runs of adjacent bytes.
    const Tensor& add(const Tensor& x, int flags, bool is_output = false) {
        if (x.numel() == 0) return x;
        std::vector<std::pair<int64_t, int64_t>> dimensions;  // stride and size, innermost first
        for (int64_t i = 0; i < x.dim(); ++i)
            if (x.size(i) > 1) dimensions.emplace_back(x.stride(i), x.size(i));
        std::sort(dimensions.begin(), dimensions.end());
        int64_t run = 1;
        size_t inner = 0;
        for (; inner < dimensions.size() && dimensions[inner].first <= run; ++inner)
            run = std::max(run, dimensions[inner].first * (dimensions[inner].second - 1) + run);
        dimensions.erase(dimensions.begin(), dimensions.begin() + static_cast<std::ptrdiff_t>(inner));
        add_runs(static_cast<char*>(x.mutable_data_ptr()), dimensions, dimensions.size(), x.element_size(),
                 run * x.element_size(), flags, is_output);
        return x;
    }

    void add_runs(char* begin, const std::vector<std::pair<int64_t, int64_t>>& dimensions, size_t outer,
                  int64_t element, int64_t bytes, int flags, bool is_output) {
        if (outer == 0) {
            ptxsim_buffer(begin, static_cast<size_t>(bytes), flags);
            if (is_output) outputs_.emplace_back(begin, bytes);
            return;
        }
        const auto [stride, size] = dimensions[outer - 1];
        for (int64_t i = 0; i < size; ++i)
            add_runs(begin + i * stride * element, dimensions, outer - 1, element, bytes, flags, is_output);
    }

    [[noreturn]] void fail_with(const std::string& text) const {
        throw std::runtime_error(std::string(op_) + ": " + text);
    }

    const char* op_;
    std::vector<std::pair<const char*, int64_t>> outputs_;
};

}  // namespace dse
