// The device that CUDA operators run on in the simulator: tensors lie in the CPU's memory, a test says which
// device that stands for and which stream is current, and the simulator learns of each tensor which bytes a
// kernel may touch, and how. See csrc/ops/cuda.h, which asks torch for the same on a GPU.
//
// Bounds are those of the view: of a matrix with gaps between its rows, the gaps are out of bounds.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cudart.h"

#define DSE_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(deepseek_ext_sim, CPU, m)

// Set by tests/streams.py.
extern "C" {
PTXSIM_EXPORT inline int dse_simulated_device = 0;
PTXSIM_EXPORT inline cudaStream_t dse_simulated_stream = nullptr;
}

namespace dse {

inline int32_t device_of(const Tensor&) { return dse_simulated_device; }
inline cudaStream_t current_stream(int32_t) { return dse_simulated_stream; }
inline std::string describe(cudaError_t error) {
    return std::string(cudaGetErrorString(error)) + " " + ptxsim_error();
}

class DeviceGuard {
  public:
    explicit DeviceGuard(int32_t device) {
        cudaGetDevice(&before_);
        cudaSetDevice(device);
    }
    ~DeviceGuard() { cudaSetDevice(before_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
};

class Buffers {
  public:
    Buffers() {
        if (is_capturing(dse_simulated_stream)) return;
        ptxsim_forget_buffers();
        captured().clear();
    }
    ~Buffers() {
        if (!is_capturing(dse_simulated_stream)) ptxsim_forget_buffers();
    }
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;

    // Registers x as its runs of adjacent bytes.
    void add(const Tensor& x, Use how) {
        if (x.numel() == 0) return;
        if (is_capturing(dse_simulated_stream)) captured().push_back(x);
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
                 run * x.element_size(), how);
    }

    // Runs what was launched, unless it was captured; an `out` of which a byte was left unwritten is an
    // error.
    void after_launches(const char* op, cudaStream_t stream) {
        if (is_capturing(dse_simulated_stream)) return;
        if (const cudaError_t error = cudaStreamSynchronize(stream); error != cudaSuccess) {
            cudaGetLastError();
            throw std::runtime_error(std::string(op) + ": " + describe(error));
        }
        for (const auto& [begin, bytes] : outputs_) {
            size_t offset = 0;
            if (ptxsim_unwritten(begin, &offset) != 0)
                throw std::runtime_error(std::string(op) + ": UNWRITTEN: byte " + std::to_string(offset) +
                                         " of " + std::to_string(bytes) +
                                         " adjacent ones of a result was never written");
        }
    }

  private:
    // What a captured graph uses stays, as it does in the memory pool of torch's graphs, until an operator
    // runs outside a capture.
    static std::vector<Tensor>& captured() {
        static auto* tensors = new std::vector<Tensor>;  // outlives torch
        return *tensors;
    }

    static int flags_of(Use how) {
        switch (how) {
            case Use::kIn:
                return PTXSIM_READABLE;
            case Use::kInout:
                return PTXSIM_READABLE | PTXSIM_WRITABLE;
            default:
                return PTXSIM_READABLE | PTXSIM_WRITABLE | PTXSIM_UNINITIALISED;
        }
    }

    void add_runs(char* begin, const std::vector<std::pair<int64_t, int64_t>>& dimensions, size_t outer,
                  int64_t element, int64_t bytes, Use how) {
        if (outer == 0) {
            ptxsim_buffer(begin, static_cast<size_t>(bytes), flags_of(how));
            if (how == Use::kOut) outputs_.emplace_back(begin, bytes);
            return;
        }
        const auto [stride, size] = dimensions[outer - 1];
        for (int64_t i = 0; i < size; ++i)
            add_runs(begin + i * stride * element, dimensions, outer - 1, element, bytes, how);
    }

    std::vector<std::pair<const char*, int64_t>> outputs_;
};

}  // namespace dse
