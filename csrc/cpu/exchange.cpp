#include "cpu/exchange.h"

#include <algorithm>
#include <cstring>

#include "formats/exchange.h"

namespace dse::cpu {
namespace {

// Bytes that are worth waking a thread for.
constexpr int64_t kGrain = 1 << 15;

int64_t grain_of_rows(int64_t bytes_a_row) {
    return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, bytes_a_row));
}

void copy_row(const PackPart& part, int64_t row, uint8_t* out) {
    const uint8_t* from = part.data + row * part.row_stride * part.size;
    if (part.column_stride == 1 || part.columns <= 1) {
        std::memcpy(out, from, part.width());
    } else {
        for (int64_t c = 0; c < part.columns; ++c)
            std::memcpy(out + c * part.size, from + c * part.column_stride * part.size, part.size);
    }
}

}  // namespace

void exchange_ranks(const Slots& indices, int64_t experts_per_rank, int64_t num_ranks, int64_t width,
                    int32_t* ranks, const ParallelFor& parallel) {
    parallel(indices.tokens, grain_of_rows(4 * indices.top_k * width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            ranks_of_token(indices, t, experts_per_rank, num_ranks, width, ranks + t * width);
    });
}

void pack_rows(const PackParts& parts, const RowOrder& order, uint8_t* out, const ParallelFor& parallel) {
    const int64_t width = parts.width();
    if (width == 0) return;
    parallel(order.count, grain_of_rows(width), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = order.rows == nullptr ? i : order.token(i);
            uint8_t* to = out + i * width;
            for (int64_t p = 0; p < parts.count; ++p) {
                const PackPart& part = parts.part[p];
                const int64_t used = row < 0 ? 0 : part.width(), taken = section_of(part.width());
                if (used > 0) copy_row(part, row, to);
                std::memset(to + used, 0, taken - used);
                to += taken;
            }
        }
    });
}

void unpack_rows(const PackedRows& packed, const RowOrder& order, uint8_t* payload, const ScaleMatrix& scales,
                 float* weights, const ParallelFor& parallel) {
    parallel(order.count, grain_of_rows(packed.width()), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = order.token(i);
            uint8_t* to = payload + i * packed.payload;
            if (row < 0) {
                std::fill(to, to + packed.payload, 0);
            } else if (packed.payload > 0) {
                std::memcpy(to, packed.data + row * packed.width(), packed.payload);
            }
            for (int64_t c = 0; c < packed.scales; ++c)
                scales.data[i * scales.row_stride + c * scales.column_stride] =
                    row < 0 ? 1.0f : packed.floats(row, packed.scales_at())[c];
            if (packed.weights > 0)
                weights[i] = row < 0
                                 ? 0.0f
                                 : packed.floats(row, packed.weights_at())[order.rows[i] - row * order.top_k];
        }
    });
}

}  // namespace dse::cpu
