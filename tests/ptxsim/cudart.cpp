// Stand-in libcudart, part 1: registration, launches, kernels' attributes, the device, errors. Signatures are
// those of cuda_runtime_api.h, which the compiler holds them to; what is not here does not link.
#include "cudart.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <vector>

#include "runtime.h"
#include "tensor_map.h"
#include "text.h"

using namespace ptxsim;

namespace {

// <<<grid, block, shared, stream>>> pushes its configuration; the stub that nvcc makes pops it.
struct CallConfiguration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
thread_local std::vector<CallConfiguration> configurations;

cudaError_t launch(const void* function, const LaunchRequest& request, void** arguments,
                   cudaStream_t handle) {
    return guarded([&](Runtime& runtime) {
        Stream& stream = runtime.stream(handle);
        if (stream.device != runtime.current_device)
            throw CudaError(cudaErrorInvalidResourceHandle, "STREAM",
                            format("the stream is one of device %d, but device %d is current", stream.device,
                                   runtime.current_device));
        runtime.launch(runtime.function(function), request, arguments, stream);
    });
}

CUresult encode_tensor_map(CUtensorMap* map, CUtensorMapDataType data_type, cuuint32_t rank, void* address,
                           const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                           const cuuint32_t* element_stride, CUtensorMapInterleave interleave,
                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2_promotion,
                           CUtensorMapFloatOOBfill fill) {
    const std::string fault = encode_tiled({data_type, rank, address, size, stride, box, element_stride,
                                            interleave, swizzle, l2_promotion, fill},
                                           map);
    if (fault.empty()) return CUDA_SUCCESS;
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    runtime.error = Fault("TENSOR_MAP", fault).what();
    return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

extern "C" {

// ---- registration: called by the constructors that nvcc puts into every object

PTXSIM_EXPORT void** __cudaRegisterFatBinary(void* wrapper) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    return reinterpret_cast<void**>(runtime.images.add(Image::from_fat_binary(wrapper)));
}

PTXSIM_EXPORT void __cudaRegisterFatBinaryEnd(void**) {}

PTXSIM_EXPORT void __cudaUnregisterFatBinary(void** handle) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    runtime.unload(reinterpret_cast<Image*>(handle));
}

PTXSIM_EXPORT char __cudaInitModule(void**) { return 1; }

PTXSIM_EXPORT void __cudaRegisterFunction(void** handle, const char* host_function, char*, const char* name,
                                          int, uint3*, uint3*, dim3*, dim3*, int*) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    runtime.images.functions[host_function] = {reinterpret_cast<Image*>(handle), name};
}

PTXSIM_EXPORT void __cudaRegisterVar(void** handle, char* host_variable, char*, const char* name, int,
                                     size_t bytes, int, int) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    runtime.images.symbols[host_variable] = {reinterpret_cast<Image*>(handle), name, bytes};
}

PTXSIM_EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                                   cudaStream_t stream) {
    configurations.push_back({grid, block, shared, stream});
    return 0;
}

PTXSIM_EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    const CallConfiguration top = configurations.back();
    configurations.pop_back();
    *grid = top.grid;
    *block = top.block;
    *shared = top.shared;
    std::memcpy(stream, &top.stream, sizeof top.stream);
    return cudaSuccess;
}

// ---- launches

PTXSIM_EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host_function));
    return cudaSuccess;
}

PTXSIM_EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                             size_t shared, cudaStream_t stream) {
    return launch(kernel, {grid, block, {0, 0, 0}, shared}, arguments, stream);
}

PTXSIM_EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                           size_t shared, cudaStream_t stream) {
    return launch(function, {grid, block, {0, 0, 0}, shared}, arguments, stream);
}

PTXSIM_EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                              void** arguments) {
    LaunchRequest request{config->gridDim, config->blockDim, {0, 0, 0}, config->dynamicSmemBytes};
    const cudaError_t refused = guarded([&](Runtime&) { read_attributes(*config, request); });
    return refused != cudaSuccess ? refused : launch(function, request, arguments, config->stream);
}

// ---- kernels

PTXSIM_EXPORT cudaError_t cudaFuncSetAttribute(const void* host_function, cudaFuncAttribute attribute,
                                               int value) {
    return guarded([&](Runtime& runtime) {
        Function& function = runtime.mutable_function(host_function);
        const Kernel& kernel = kernel_of(function, runtime.module(*function.image));
        switch (attribute) {
            case cudaFuncAttributeMaxDynamicSharedMemorySize:
                if (value < 0 || static_cast<uint32_t>(value) > most_dynamic_shared(kernel))
                    throw CudaError(
                        cudaErrorInvalidValue, "LAUNCH",
                        format("kernel %s cannot have %d bytes of dynamic shared memory: at most %u",
                               kernel.name.c_str(), value, most_dynamic_shared(kernel)));
                function.max_dynamic_shared = static_cast<uint32_t>(value);
                break;
            case cudaFuncAttributeNonPortableClusterSizeAllowed:
                function.non_portable_cluster = value != 0;
                break;
            case cudaFuncAttributePreferredSharedMemoryCarveout:
                break;  // a hint
            default:
                throw CudaError(
                    cudaErrorInvalidValue, "LAUNCH",
                    format("function attribute %d is not simulated", static_cast<int>(attribute)));
        }
    });
}

PTXSIM_EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* host_function) {
    return guarded([&](Runtime& runtime) {
        const Function& function = runtime.function(host_function);
        const Kernel& kernel = kernel_of(function, runtime.module(*function.image));
        *attributes = {};
        attributes->sharedSizeBytes = static_shared(kernel);
        attributes->localSizeBytes = kernel.local_bytes;
        attributes->maxThreadsPerBlock = static_cast<int>(most_threads(kernel));
        attributes->numRegs = static_cast<int>(most_registers(kernel));
        attributes->ptxVersion = attributes->binaryVersion = static_cast<int>(runtime.device.capability);
        attributes->maxDynamicSharedSizeBytes =
            static_cast<int>(function.max_dynamic_shared ? function.max_dynamic_shared
                                                         : kSharedPerBlock - static_shared(kernel));
        attributes->requiredClusterWidth = kernel.cluster[0];
        attributes->requiredClusterHeight = kernel.cluster[1];
        attributes->requiredClusterDepth = kernel.cluster[2];
        attributes->nonPortableClusterSizeAllowed = function.non_portable_cluster;
    });
}

PTXSIM_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void* host_function, int threads, size_t dynamic_shared, unsigned) {
    return guarded([&](Runtime& runtime) {
        const Function& function = runtime.function(host_function);
        const Kernel& kernel = kernel_of(function, runtime.module(*function.image));
        if (threads <= 0 || static_cast<uint32_t>(threads) > most_threads(kernel))
            throw CudaError(cudaErrorInvalidValue, "LAUNCH",
                            format("%d threads a block of kernel %s: at most %u", threads,
                                   kernel.name.c_str(), most_threads(kernel)));
        *blocks = resident_blocks(static_cast<uint32_t>(threads), most_registers(kernel),
                                  static_shared(kernel) + static_cast<uint32_t>(dynamic_shared));
    });
}

PTXSIM_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                                        int threads, size_t dynamic_shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic_shared,
                                                                  0);
}

// ---- the device

PTXSIM_EXPORT cudaError_t cudaGetDeviceCount(int* count) {
    return guarded([&](Runtime& runtime) { *count = static_cast<int>(runtime.device.count); });
}

PTXSIM_EXPORT cudaError_t cudaGetDevice(int* device) {
    return guarded([&](Runtime& runtime) { *device = runtime.current_device; });
}

PTXSIM_EXPORT cudaError_t cudaSetDevice(int device) {
    return guarded([&](Runtime& runtime) {
        if (device < 0 || device >= runtime.device.count)
            throw CudaError(cudaErrorInvalidDevice, "DEVICE", format("there is no device %d", device));
        runtime.current_device = device;
    });
}

PTXSIM_EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    return guarded([&](Runtime& runtime) {
        if (device_attribute(runtime.device, attribute, value) != cudaSuccess)
            throw CudaError(
                cudaErrorInvalidValue, "DEVICE",
                format("the simulated device does not know attribute %d", static_cast<int>(attribute)));
    });
}

PTXSIM_EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    return guarded([&](Runtime& runtime) { *properties = device_properties(runtime.device); });
}

PTXSIM_EXPORT cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

PTXSIM_EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

// The driver's functions that a launcher may ask for by name.
PTXSIM_EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                                           unsigned long long,
                                                           cudaDriverEntryPointQueryResult* result) {
    const bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void*>(encode_tensor_map) : nullptr;
    if (result != nullptr) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

// ---- errors

PTXSIM_EXPORT cudaError_t cudaGetLastError() { return std::exchange(last_error(), cudaSuccess); }
PTXSIM_EXPORT cudaError_t cudaPeekAtLastError() { return last_error(); }

PTXSIM_EXPORT const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDeviceFunction:
            return "cudaErrorInvalidDeviceFunction";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorInvalidKernelImage:
            return "cudaErrorInvalidKernelImage";
        case cudaErrorInvalidResourceHandle:
            return "cudaErrorInvalidResourceHandle";
        case cudaErrorInvalidSymbol:
            return "cudaErrorInvalidSymbol";
        case cudaErrorInvalidClusterSize:
            return "cudaErrorInvalidClusterSize";
        case cudaErrorIllegalState:
            return "cudaErrorIllegalState";
        case cudaErrorLaunchFailure:
            return "cudaErrorLaunchFailure";
        case cudaErrorNotReady:
            return "cudaErrorNotReady";
        case cudaErrorNotSupported:
            return "cudaErrorNotSupported";
        case cudaErrorStreamCaptureUnsupported:
            return "cudaErrorStreamCaptureUnsupported";
        case cudaErrorStreamCaptureInvalidated:
            return "cudaErrorStreamCaptureInvalidated";
        case cudaErrorStreamCaptureUnmatched:
            return "cudaErrorStreamCaptureUnmatched";
        case cudaErrorStreamCaptureUnjoined:
            return "cudaErrorStreamCaptureUnjoined";
        case cudaErrorStreamCaptureIsolation:
            return "cudaErrorStreamCaptureIsolation";
        case cudaErrorStreamCaptureImplicit:
            return "cudaErrorStreamCaptureImplicit";
        default:
            return "cudaErrorUnknown";
    }
}

// What exactly happened says ptxsim_error.
PTXSIM_EXPORT const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : cudaGetErrorName(error);
}
}
