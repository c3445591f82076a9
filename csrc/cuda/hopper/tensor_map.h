// Tensor maps, made on the host and handed to kernels as parameters; they are never changed on the device.
#pragma once
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace dse::cuda::hopper {

// A tensor [planes, rows, columns] whose columns are adjacent; strides in bytes. Boxes are of one plane and
// 128-byte rows, swizzled, so that eight rows of a column of 16-byte chunks lie in all banks.
struct BoxedTensor {
    const void* data;
    CUtensorMapDataType type;
    int64_t element_bytes;
    int64_t columns, rows, planes;
    int64_t row_stride, plane_stride;
};

inline constexpr int64_t kBoxRowBytes = 128;

// A stride along a dimension of size 1 says nothing and may be anything: what the format accepts is put in
// its place.
inline BoxedTensor with_valid_strides(BoxedTensor x) {
    const int64_t row_bytes = (x.columns * x.element_bytes + 15) / 16 * 16;
    if (x.rows == 1) x.row_stride = row_bytes;
    if (x.planes == 1) x.plane_stride = row_bytes;
    return x;
}

// Whether a tensor map can describe it.
inline bool has_tensor_map(const BoxedTensor& tensor) {
    constexpr int64_t kMostStride = int64_t{1} << 40;
    const BoxedTensor x = with_valid_strides(tensor);
    // Coordinates of boxes beyond the last row fit, too.
    const auto in_range = [](int64_t size) { return size >= 1 && size <= INT32_MAX - 4096; };
    const auto is_stride = [](int64_t bytes) { return bytes > 0 && bytes < kMostStride && bytes % 16 == 0; };
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && in_range(x.columns) && in_range(x.rows) &&
           in_range(x.planes) && is_stride(x.row_stride) && is_stride(x.plane_stride) &&
           x.row_stride >= x.columns * x.element_bytes;
}

// The driver's encoder, found through the runtime: nothing links against libcuda.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
        throw std::runtime_error("the CUDA driver lacks cuTensorMapEncodeTiled; install 12.0 or later");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

// Of a tensor that has one; boxes have `box_rows` rows, at most 256.
inline CUtensorMap make_tensor_map(const BoxedTensor& tensor, int box_rows) {
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = tensor_map_encoder();
    const BoxedTensor x = with_valid_strides(tensor);
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(x.columns), static_cast<cuuint64_t>(x.rows),
                                static_cast<cuuint64_t>(x.planes)};
    const cuuint64_t strides[] = {static_cast<cuuint64_t>(x.row_stride),
                                  static_cast<cuuint64_t>(x.plane_stride)};
    const cuuint32_t box[] = {static_cast<cuuint32_t>(kBoxRowBytes / x.element_bytes),
                              static_cast<cuuint32_t>(box_rows), 1};
    const cuuint32_t steps[] = {1, 1, 1};
    CUtensorMap map;
    const CUresult result = encode(&map, x.type, 3, const_cast<void*>(x.data), sizes, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw std::runtime_error("the CUDA driver refuses a tensor map, error " + std::to_string(result));
    return map;
}

}  // namespace dse::cuda::hopper
