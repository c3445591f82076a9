// What a CUDA operator needs around its launcher: the tensors' device made current, its stream, pointers, and
// the errors of the launch.
//
//     CudaCall call("quantize_tiles", x);
//     cuda::quantize_tiles(float_matrix(call.in(x)), ..., call.out<uint8_t>(codes), ..., call.stream());
//     call.finish();
//
// Under DSE_CHECK=1 finish() waits for the kernel and raises what it did wrong, and operators read and check
// the values of offs and indices, which the host otherwise never does.
//
// The tests build the same sources for their simulator, where CudaCall is that of tests/ptxsim.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "ops/check.h"
#include "ops/describe.h"

namespace dse {

// Whether values are to be checked too.
inline bool is_checking() {
    const char* text = std::getenv("DSE_CHECK");
    return text != nullptr && std::string(text) == "1";
}

}  // namespace dse

#ifdef DSE_SIMULATOR
#include "simulated_call.h"
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

// Registers a family's kernels: DSE_CUDA_KERNELS(m) { m.impl("name", TORCH_BOX(&function)); }
#define DSE_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CUDA, m)

namespace dse {

class CudaCall {
  public:
    using Tensor = torch::stable::Tensor;

    // `like` is a tensor on the device to run on.
    CudaCall(const char* op, const Tensor& like) : op_(op), device_(device_of(like)), guard_(device_) {
        void* stream = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }

    cudaStream_t stream() const { return stream_; }

    // Each tensor that the kernel touches, as it touches it: reads; writes every element of, and reads none
    // before; both; or uses as it likes, whatever is in it.
    const Tensor& in(const Tensor& x) { return on_device(x); }
    const Tensor& out(const Tensor& x) { return on_device(x); }
    const Tensor& inout(const Tensor& x) { return on_device(x); }
    const Tensor& scratch(const Tensor& x) { return on_device(x); }

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

    // The values of a contiguous tensor; waits for the device, so only where checking().
    template <class T>
    std::vector<T> values(const Tensor& x) {
        std::vector<T> result(x.numel());
        if (!result.empty())
            check(cudaMemcpyAsync(result.data(), in<T>(x), result.size() * sizeof(T), cudaMemcpyDeviceToHost,
                                  stream_));
        check(cudaStreamSynchronize(stream_));
        return result;
    }

    // After the launches.
    void finish() {
        check(cudaGetLastError());
        if (checking()) check(cudaStreamSynchronize(stream_));
    }

  private:
    int32_t device_of(const Tensor& x) const {
        DSE_REQUIRE(x.is_cuda(), op_,
                    ": every tensor must be on one device, got one on the CPU and one on a "
                    "GPU; move it with .to()");
        return x.get_device_index();
    }

    const Tensor& on_device(const Tensor& x) const {
        DSE_REQUIRE(device_of(x) == device_, op_, ": every tensor must be on one device, got cuda:", device_,
                    " and cuda:", device_of(x), "; move it with .to()");
        return x;
    }

    void check(cudaError_t error) const {
        if (error != cudaSuccess)
            throw std::runtime_error(std::string(op_) + ": CUDA says " + cudaGetErrorString(error));
    }

    const char* op_;
    int32_t device_;
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace dse
#endif
