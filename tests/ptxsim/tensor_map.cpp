#include "tensor_map.h"

#include <cstddef>
#include <cstring>

#include "text.h"

namespace ptxsim {
namespace {

// Bytes of an element; 0 for a type this simulator does not copy (the packed 4- and 6-bit ones of later
// devices).
uint32_t element_bytes(CUtensorMapDataType type) {
    switch (type) {
        case CU_TENSOR_MAP_DATA_TYPE_UINT8:
            return 1;
        case CU_TENSOR_MAP_DATA_TYPE_UINT16:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
        case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
            return 2;
        case CU_TENSOR_MAP_DATA_TYPE_UINT32:
        case CU_TENSOR_MAP_DATA_TYPE_INT32:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
        case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
        case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ:
            return 4;
        case CU_TENSOR_MAP_DATA_TYPE_UINT64:
        case CU_TENSOR_MAP_DATA_TYPE_INT64:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
            return 8;
        default:
            return 0;
    }
}

// TMA rounds or flushes elements of these types on their way; the simulator copies bytes.
bool alters_elements(CUtensorMapDataType type) {
    return type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ || type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 ||
           type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ;
}

bool is_float(CUtensorMapDataType type) {
    return type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ||
           type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT64;
}

std::string check_modes(const TensorMapArguments& a) {
    if (element_bytes(a.data_type) == 0 || alters_elements(a.data_type))
        return format("data type %d is not one the simulator copies", static_cast<int>(a.data_type));
    if (a.interleave != CU_TENSOR_MAP_INTERLEAVE_NONE)
        return "interleaved layouts are not simulated: use CU_TENSOR_MAP_INTERLEAVE_NONE";
    if (a.swizzle < CU_TENSOR_MAP_SWIZZLE_NONE || a.swizzle > CU_TENSOR_MAP_SWIZZLE_128B)
        return format("swizzle %d is not simulated: use none, 32B, 64B or 128B", static_cast<int>(a.swizzle));
    if (a.l2_promotion < CU_TENSOR_MAP_L2_PROMOTION_NONE ||
        a.l2_promotion > CU_TENSOR_MAP_L2_PROMOTION_L2_256B)
        return format("L2 promotion %d does not exist", static_cast<int>(a.l2_promotion));
    if (a.fill < CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE ||
        a.fill > CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA)
        return format("out-of-bounds fill %d does not exist", static_cast<int>(a.fill));
    if (a.fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA && !is_float(a.data_type))
        return "NaN fill needs a floating-point data type";
    return {};
}

std::string check_dimensions(const TensorMapArguments& a) {
    for (uint32_t i = 0; i < a.rank; ++i) {
        if (a.size[i] == 0 || a.size[i] > (1ull << 32))
            return format("size of dimension %u is %llu, not in 1 .. 2^32", i,
                          static_cast<unsigned long long>(a.size[i]));
        if (a.size[i] == 1ull << 32) return format("dimension %u of 2^32 elements is not simulated", i);
        if (a.box[i] == 0 || a.box[i] > 256)
            return format("box of dimension %u is %u, not in 1 .. 256", i, a.box[i]);
        if (a.element_stride[i] == 0 || a.element_stride[i] > 8)
            return format("element stride of dimension %u is %u, not in 1 .. 8", i, a.element_stride[i]);
        if (a.element_stride[i] != 1) return "element strides other than 1 are not simulated";
        if (i == 0) continue;
        const uint64_t stride = a.stride[i - 1];
        if (stride % 16 != 0 || stride >= 1ull << 40)
            return format("stride of dimension %u is %llu bytes, not a multiple of 16 below 2^40", i,
                          static_cast<unsigned long long>(stride));
    }
    return {};
}

std::string check_inner_box(const TensorMapArguments& a) {
    const uint32_t bytes = a.box[0] * element_bytes(a.data_type);
    if (bytes % 16 != 0) return format("the box's inner dimension is %u bytes, not a multiple of 16", bytes);
    if (a.swizzle != CU_TENSOR_MAP_SWIZZLE_NONE && bytes > 16u << a.swizzle)
        return format("the box's inner dimension is %u bytes, more than the swizzle's %u", bytes,
                      16u << a.swizzle);
    return {};
}

}  // namespace

uint32_t TensorMap::box_rows() const {
    uint32_t rows = 1;
    for (uint32_t i = 1; i < rank; ++i) rows *= box[i];
    return rows;
}

uint32_t TensorMap::box_bytes() const { return box_rows() * box[0] * element_bytes; }

uint64_t TensorMap::hash() const {
    uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
    const auto* bytes = reinterpret_cast<const unsigned char*>(this);
    for (size_t i = 0; i < offsetof(TensorMap, check); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3ull;
    return hash;
}

std::string encode_tiled(const TensorMapArguments& a, void* map) {
    if (reinterpret_cast<uintptr_t>(map) % 64 != 0) return "the CUtensorMap is not aligned to 64 bytes";
    if (a.rank == 0 || a.rank > kMaxTensorRank) return format("rank %u is not in 1 .. 5", a.rank);
    if (reinterpret_cast<uintptr_t>(a.address) % 16 != 0)
        return "the global address is not aligned to 16 bytes";
    if (a.address == nullptr) return "the global address is null";
    for (const std::string& fault : {check_modes(a), check_dimensions(a), check_inner_box(a)})
        if (!fault.empty()) return fault;

    TensorMap made;
    made.address = reinterpret_cast<uintptr_t>(a.address);
    made.rank = static_cast<uint8_t>(a.rank);
    made.element_bytes = static_cast<uint8_t>(element_bytes(a.data_type));
    made.data_type = static_cast<uint8_t>(a.data_type);
    made.swizzle = static_cast<uint8_t>(a.swizzle);
    made.fill_with_nan = a.fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
    for (uint32_t i = 0; i < a.rank; ++i) {
        made.size[i] = static_cast<uint32_t>(a.size[i]);
        made.box[i] = static_cast<uint16_t>(a.box[i]);
        if (i > 0) made.stride[i - 1] = a.stride[i - 1];
    }
    made.check = made.hash();
    std::memset(map, 0, sizeof(CUtensorMap));
    std::memcpy(map, &made, sizeof made);
    return {};
}

}  // namespace ptxsim
