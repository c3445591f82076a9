// Column tiles, written as the row tiles of the transpose, from numbers or from row tiles (retile); with the
// row tiles of the same block if wanted.
//
// One thread block makes one 128x128 block at a time, which it reads once. A column's maximum is taken over
// the rows of a thread, over the warp's two, then over the sixteen warps through shared memory, where 128
// threads divide, one for each column. Codes are transposed in shared memory and leave in 16 bytes. Bound by
// memory: 3 bytes an element from BF16, 4 with the row tiles.
#include "cuda/block.cuh"
#include "cuda/groups.cuh"
#include "cuda/launch.cuh"
#include "cuda/quantize.cuh"

namespace dse::cuda {
namespace {

// Where a column's maximum and multiplier lie: a thread's eight are two vectors of four, which the sixteen
// lanes of a row access without a bank conflict, as do 32 threads that take neighbouring columns.
constexpr int kSpreadColumns = kBlockSide + 16;
template <int kRun>
__device__ int spread(int column) {
    return kRun == 4 ? column : column % 8 / 4 * (kBlockSide / 2 + 16) + column / 8 * 4 + column % 4;
}

// A thread block's block of the matrix: `rows` rows from `row` on, which become the columns of tile `tile` of
// the transposed layout, and `columns` columns from `column` on. No rows in a tile that is all gap; but
// `cleared` rows of no group, from `row` on, whose own codes are 0.
struct Place {
    int64_t tile, row, column;
    int rows, cleared, columns;
};

template <int kRun>
struct Shared {
    using Transposed = TransposedBytes<kRun>;
    Place place;
    alignas(16) float multipliers[kSpreadColumns];
    union {  // one after the other
        alignas(16) float maxima[kBlockWarps][kSpreadColumns];
        alignas(16) uint32_t bytes[sizeof(Transposed) / 4];
    };
    __device__ Transposed& transposed() { return *reinterpret_cast<Transposed*>(bytes); }
};

// What the kernel makes of x [rows, columns]: `tiles` tiles of 128 rows wide, and of `codes` if not null.
struct Results {
    int64_t rows, columns, tiles;
    bool power_of_2;
    uint8_t* codes_t;
    ScaleMatrix scales_t;
    uint8_t* codes;
    ScaleMatrix scales;
    bool clears;  // rows of no group in `codes`: they may need one tile more

    int64_t blocks() const { return (tiles + (clears ? 1 : 0)) * num_tiles(columns); }
};

// All lanes of a warp call it and get the same.
__device__ Place find_place(const Groups& groups, const Results& results) {
    const auto across = static_cast<unsigned>(num_tiles(results.columns));
    const int64_t tile = blockIdx.x / across, column = static_cast<int64_t>(blockIdx.x % across) * kTile;
    const GroupTile found = find_group_tile<kTile>(groups, 1, results.rows, tile);
    const int rows = static_cast<int>(found.end - found.begin);
    const bool gap = groups.ends != nullptr && found.group == groups.count;  // nothing past the last group
    return {tile,           found.begin,    column,
            gap ? 0 : rows, gap ? rows : 0, static_cast<int>(min(results.columns - column, kTile))};
}

// The row tiles of the block: sixteen lanes have a row, so of four scales each computes one.
template <bool kVector, int kRun>
__device__ void store_rows(const ThreadRows& values, bool all_finite, const Place& place,
                           const Results& results) {
    const int lane = threadIdx.x % kRowLanes;
    uint32_t mine = 0;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
        const uint32_t amax = largest_of_lanes<kRowLanes>(magnitude_of<kThreadColumns>(values[r]).bits);
        if (lane % kThreadRows == r) mine = amax;
    }
    const Scale s = scale_of<E4M3>(bits_float(mine), results.power_of_2);
    const int64_t row = place.row + thread_row();
    const int rows = place.rows + place.cleared;
    if (lane < kThreadRows && thread_row() + lane < rows)
        results.scales.data[(row + lane) * results.scales.row_stride +
                            place.column / kTile * results.scales.column_stride] = s.scale;
    uint8_t* to = results.codes + row * results.columns + place.column;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
        const float multiplier = __shfl_sync(kAllLanes, s.multiplier, r, kRowLanes);
        if (thread_row() + r < rows)
            store_row<kVector, kRun>(values[r], multiplier, all_finite, place.columns,
                                     to + r * results.columns);
    }
}

// A warp's maxima of each column to shared memory. Returns whether all of the thread's numbers are finite.
template <int kRun>
__device__ bool store_maxima(const ThreadRows& values, Shared<kRun>& shared) {
    float maxima[kThreadColumns], largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreadColumns; ++i) {
        maxima[i] = larger_magnitude(larger_magnitude(values[0][i], values[1][i]),
                                     larger_magnitude(values[2][i], values[3][i]));
        largest = larger_magnitude(largest, maxima[i]);
    }
    const bool all_finite = is_finite(largest);
#pragma unroll
    for (int i = 0; i < kThreadColumns; ++i) {
        const float column[] = {values[0][i], values[1][i], values[2][i], values[3][i]};
        if (!all_finite) maxima[i] = bits_float(finite_amax_bits<kThreadRows>(column));
        maxima[i] = fmaxf(maxima[i], __shfl_xor_sync(kAllLanes, maxima[i], kRowLanes));
    }
    if (threadIdx.x % kWarpSize < kRowLanes) {
        float* to = shared.maxima[threadIdx.x / kWarpSize];
#pragma unroll
        for (int i = 0; i < kThreadColumns; i += 4)
            *reinterpret_cast<float4*>(to + spread<kRun>(thread_column<kRun>(i))) =
                make_float4(maxima[i], maxima[i + 1], maxima[i + 2], maxima[i + 3]);
    }
    return all_finite;
}

template <int kRun>
__device__ Scale column_scale(const Shared<kRun>& shared, int column, bool power_of_2) {
    float amax = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kBlockWarps; ++warp)
        amax = fmaxf(amax, shared.maxima[warp][spread<kRun>(column)]);
    return scale_of<E4M3>(amax, power_of_2);
}

template <int kRun>
__device__ void put_codes(const ThreadRows& values, bool all_finite, Shared<kRun>& shared) {
    static_assert(kThreadRows == 4);
#pragma unroll
    for (int first = 0; first < kThreadColumns; first += 4) {
        const int at = thread_column<kRun>(first);
        const float4 four = *reinterpret_cast<const float4*>(shared.multipliers + spread<kRun>(at));
        const float multipliers[] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = first; i < first + 4; ++i) {
            const float column[] = {values[0][i], values[1][i], values[2][i], values[3][i]};
            shared.transposed().put(thread_column<kRun>(i / kRun * kRun), i % kRun,
                                    thread_row() / kThreadRows,
                                    encode_four(column, multipliers[i - first], all_finite));
        }
    }
}

// kRowVector: the vector forms serve the row results too.
template <class Source, bool kRowResults, bool kRowVector>
__global__ void __launch_bounds__(kBlockThreads, 2)
    transposed_kernel(Source source, Groups groups, Results results) {
    constexpr int kRun = Source::kRun;
    __shared__ Shared<kRun> shared;
    if (threadIdx.x < kWarpSize) {
        const Place found = find_place(groups, results);
        if (threadIdx.x == 0) shared.place = found;
    }
    __syncthreads();
    const Place& place = shared.place;
    ThreadRows values;
    load_block(source, place.row, place.rows, place.column, place.columns, values);
    const bool all_finite = store_maxima(values, shared);
    if (kRowResults) store_rows<kRowVector, kRun>(values, all_finite, place, results);
    if (kRowResults && place.tile == results.tiles) return;
    __syncthreads();
    if (threadIdx.x < kBlockSide) {
        const Scale s = column_scale(shared, threadIdx.x, results.power_of_2);
        shared.multipliers[spread<kRun>(threadIdx.x)] = s.multiplier;
        if (threadIdx.x < place.columns)
            results.scales_t.data[(place.column + threadIdx.x) * results.scales_t.row_stride +
                                  place.tile * results.scales_t.column_stride] = s.scale;
    }
    __syncthreads();
    put_codes(values, all_finite, shared);
    __syncthreads();
    uint8_t* codes_t = results.codes_t + (place.column * results.tiles + place.tile) * kTile;
    each_sixteen(shared.transposed(), place.columns, [&](int c, int i, uint4 bytes) {
        reinterpret_cast<uint4*>(codes_t + c * results.tiles * kTile)[i] = bytes;
    });
}

template <bool kRowVector, class Source>
void launch(const Source& source, const Groups& groups, const Results& results, cudaStream_t stream) {
    auto kernel = transposed_kernel<Source, false, false>;
    if constexpr (Source::kHasRowResults)
        if (results.codes != nullptr) kernel = transposed_kernel<Source, true, kRowVector>;
    kernel<<<static_cast<unsigned>(results.blocks()), kBlockThreads, 0, stream>>>(source, groups, results);
}

int64_t tiles_of(int64_t rows, const Groups& groups) {
    return (groups.ends == nullptr ? padded_columns(rows) : grouped_columns(rows, groups.count)) / kTile;
}

void encode(const FloatMatrix& x, const Groups& groups, const Results& results, cudaStream_t stream) {
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const T* data = static_cast<const T*>(x.data);
        if (vector_rows(x.data, x.columns, x.row_stride, sizeof(T)) && is_aligned(results.codes, 8))
            launch<true>(FloatSource<T, true>{data, x.row_stride}, groups, results, stream);
        else
            launch<false>(FloatSource<T, false>{data, x.row_stride}, groups, results, stream);
    });
}

template <class Codes, class Matrix>
void recode(const Matrix& x, const uint8_t* codes, const Groups& groups, const Results& results,
            cudaStream_t stream) {
    const auto source = [&](auto vector) {
        return CodeSource<Codes, vector.value>{codes, x.scales, x.row_stride, x.scale_row_stride,
                                               x.scale_column_stride};
    };
    if (x.columns % kVectorLength == 0 && is_aligned(codes, Codes::kAlignment) &&
        x.row_stride % Codes::kAlignment == 0)
        launch<false>(source(std::true_type()), groups, results, stream);
    else
        launch<false>(source(std::false_type()), groups, results, stream);
}

Results transposed_results(int64_t rows, int64_t columns, const Groups& groups, bool power_of_2,
                           uint8_t* codes_t, const ScaleMatrix& scales_t) {
    return {rows, columns, tiles_of(rows, groups), power_of_2, codes_t, scales_t, nullptr, {}, false};
}

}  // namespace

void quantize_tiles_transposed(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t,
                               const ScaleMatrix& scales_t, cudaStream_t stream) {
    const Results results = transposed_results(x.rows, x.columns, groups, power_of_2, codes_t, scales_t);
    if (results.blocks() > 0) encode(x, groups, results, stream);
}

void quantize_tiles_both(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes,
                         const ScaleMatrix& scales, uint8_t* codes_t, const ScaleMatrix& scales_t,
                         cudaStream_t stream) {
    Results results = transposed_results(x.rows, x.columns, groups, power_of_2, codes_t, scales_t);
    results.codes = codes;
    results.scales = scales;
    results.clears = groups.ends != nullptr && x.rows > 0;
    if (results.blocks() > 0) encode(x, groups, results, stream);
}

void retile(const CodeMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t,
            const ScaleMatrix& scales_t, cudaStream_t stream) {
    const Results results = transposed_results(x.rows, x.columns, groups, power_of_2, codes_t, scales_t);
    if (results.blocks() > 0) recode<E4M3Codes>(x, x.codes, groups, results, stream);
}

void retile_e5m6(const PackedMatrix& x, bool power_of_2, uint8_t* codes_t, const ScaleMatrix& scales_t,
                 cudaStream_t stream) {
    const Groups all{nullptr, 0};
    const Results results = transposed_results(x.rows, x.columns, all, power_of_2, codes_t, scales_t);
    if (results.blocks() > 0) recode<E5M6Codes>(x, x.packed, all, results, stream);
}

}  // namespace dse::cuda
