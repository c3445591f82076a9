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
// The tests build the same sources for their simulator, where tests/ptxsim says what a device and its current
// stream are.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "ops/require.h"

namespace dse {

// How a kernel uses a tensor: reads it; writes every element, and reads none before; both; or uses it as it
// likes, whatever is in it.
enum class Use { kIn, kOut, kInout, kScratch };

inline bool is_capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

}  // namespace dse

#ifdef DSE_SIMULATOR
#include "simulated_device.h"
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

// Registers a family's kernels: DSE_CUDA_KERNELS(m) { m.impl("name", TORCH_BOX(&function)); }
#define DSE_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CUDA, m)

namespace dse {

using torch::stable::accelerator::DeviceGuard;

// -1: on no GPU.
inline int32_t device_of(const Tensor& x) { return x.is_cuda() ? x.get_device_index() : -1; }

inline cudaStream_t current_stream(int32_t device) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

inline std::string describe(cudaError_t error) {
    return std::string("CUDA says ") + cudaGetErrorString(error);
}

// The simulator holds kernels to what an operator said of its tensors; a GPU does not.
struct Buffers {
    void add(const Tensor&, Use) {}
    void after_launches(const char*, cudaStream_t) {}
};

}  // namespace dse
#endif

namespace dse {

class CudaCall {
  public:
    // `like` is a tensor on the device to run on.
    CudaCall(const char* op, const Tensor& like)
        : op_(op),
          is_checking_(wants_checks()),
          device_(checked_device(like)),
          guard_(device_),
          stream_(current_stream(device_)) {
        if (is_checking_ && is_capturing(stream_))
            throw std::runtime_error(std::string(op) +
                                     ": DSE_CHECK=1 waits for the GPU, which cannot be done while a graph is "
                                     "captured; unset it");
    }
    CudaCall(const CudaCall&) = delete;
    CudaCall& operator=(const CudaCall&) = delete;

    cudaStream_t stream() const { return stream_; }

    // Each tensor that the kernel touches, as it touches it.
    const Tensor& in(const Tensor& x) { return used(x, Use::kIn); }
    const Tensor& out(const Tensor& x) { return used(x, Use::kOut); }
    const Tensor& inout(const Tensor& x) { return used(x, Use::kInout); }
    const Tensor& scratch(const Tensor& x) { return used(x, Use::kScratch); }

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

    // check_them(values, count) of x's elements in order, under DSE_CHECK=1 only: it waits for the device.
    template <class T, class Check>
    void check_values(const Tensor& x, const Check& check_them) {
        if (!is_checking_) return;
        require_here(x);
        const Tensor list = torch::stable::contiguous(x);
        std::vector<T> values(static_cast<size_t>(list.numel()));
        if (!values.empty())
            check(cudaMemcpyAsync(values.data(), list.const_data_ptr(), values.size() * sizeof(T),
                                  cudaMemcpyDeviceToHost, stream_));
        check(cudaStreamSynchronize(stream_));
        check_them(values.data(), list.numel());
    }

    // After the launches.
    void finish() {
        check(cudaGetLastError());
        if (is_checking_) check(cudaStreamSynchronize(stream_));
        buffers_.after_launches(op_, stream_);
    }

  private:
    static bool wants_checks() {
        const char* text = std::getenv("DSE_CHECK");
        return text != nullptr && std::string_view(text) == "1";
    }

    int32_t checked_device(const Tensor& x) const {
        const int32_t device = device_of(x);
        DSE_REQUIRE(device >= 0, op_,
                    ": every tensor must be on one device, got one on the CPU and one on a GPU; move it with "
                    ".to()");
        return device;
    }

    void require_here(const Tensor& x) const {
        const int32_t device = checked_device(x);
        DSE_REQUIRE(device == device_, op_, ": every tensor must be on one device, got cuda:", device_,
                    " and cuda:", device, "; move it with .to()");
    }

    const Tensor& used(const Tensor& x, Use how) {
        require_here(x);
        buffers_.add(x, how);
        return x;
    }

    void check(cudaError_t error) const {
        if (error == cudaSuccess) return;
        cudaGetLastError();  // else the next operator would report it again
        throw std::runtime_error(std::string(op_) + ": " + describe(error));
    }

    const char* op_;
    const bool is_checking_;
    const int32_t device_;
    DeviceGuard guard_;
    const cudaStream_t stream_;
    Buffers buffers_;
};

}  // namespace dse
