// Every kernel of the exchange family on ragged shapes and buffers of the exact size, against its definition.
#include "cpu/exchange.h"

#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

constexpr int64_t kTokens = 37, kTopK = 5;

Buffer<int32_t> numbers(int64_t count, int32_t end, uint32_t seed) {
    std::mt19937 generator(seed);
    Buffer<int32_t> result(count);
    for (int64_t i = 0; i < count; ++i) result[i] = static_cast<int32_t>(generator() % (end + 1)) - 1;
    return result;
}

SANITIZED_CASE(exchange_ranks) {
    for (const int64_t ranks : {1, 2, 7, 64})
        for (const int64_t held : {1, 3}) {
            const Buffer<int32_t> indices = numbers(kTokens * kTopK, static_cast<int32_t>(ranks * held), 1);
            const int64_t width = std::min(ranks, kTopK);
            Buffer<int32_t> got(kTokens * width);
            cpu::exchange_ranks({indices.data(), kTokens, kTopK}, held, ranks, width, got.data(), threads());
            for (int64_t t = 0; t < kTokens; ++t) {
                int64_t n = 0;
                for (int32_t rank = 0; rank < ranks; ++rank) {
                    bool there = false;
                    for (int64_t k = 0; k < kTopK; ++k) {
                        const int32_t choice = indices[t * kTopK + k];
                        there = there || (choice >= 0 && choice / held == rank);
                    }
                    if (there) EXPECT(got[t * width + n++] == rank);
                }
                for (; n < width; ++n) EXPECT(got[t * width + n] == -1);
            }
        }
}

// `size` bytes an element, rows `gap` elements apart or column by column; the buffer ends with the last.
struct Part {
    Part(int64_t columns, int64_t size, bool by_column, uint32_t seed)
        : buffer(kTokens * columns * size),
          part{buffer.data(), kTokens, columns, size, by_column ? 1 : columns, by_column ? kTokens : 1} {
        fill_bits(buffer, seed);
    }
    const uint8_t* element(int64_t row, int64_t c) const {
        return buffer.data() + (row * part.row_stride + c * part.column_stride) * part.size;
    }
    Buffer<uint8_t> buffer;
    PackPart part;
};

SANITIZED_CASE(pack_rows) {
    const Buffer<int32_t> rows = numbers(91, static_cast<int32_t>(kTokens * kTopK), 2);
    for (const int64_t columns : {0, 1, 5, 130, 512})
        for (const int64_t size : {1, 2, 4})
            for (const bool by_column : {false, true})
                for (const bool in_turn : {false, true}) {
                    const Part first(columns, size, by_column, 3), second(7, 4, !by_column, 4);
                    const PackParts parts{{first.part, second.part}, 2};
                    const int64_t width = parts.width(), count = in_turn ? kTokens : rows.size();
                    EXPECT(width % 16 == 0);
                    Buffer<uint8_t> out(count * width);
                    const RowOrder order{in_turn ? nullptr : rows.data(), count, in_turn ? 1 : kTopK};
                    cpu::pack_rows(parts, order, out.data(), threads());
                    for (int64_t i = 0; i < count; ++i) {
                        const int64_t row = in_turn ? i : order.token(i);
                        const uint8_t* got = out.data() + i * width;
                        for (const Part* p : {&first, &second}) {
                            for (int64_t c = 0; c < p->part.columns; ++c)
                                for (int64_t b = 0; b < p->part.size; ++b)
                                    EXPECT(got[c * p->part.size + b] ==
                                           (row < 0 ? 0 : p->element(row, c)[b]));
                            for (int64_t b = p->part.width(); b < section_of(p->part.width()); ++b)
                                EXPECT(got[b] == 0);
                            got += section_of(p->part.width());
                        }
                    }
                }
}

SANITIZED_CASE(unpack_rows) {
    const Buffer<int32_t> rows = numbers(91, static_cast<int32_t>(kTokens * kTopK), 5);
    for (const int64_t payload : {0, 1, 5, 130, 512})
        for (const int64_t scales : {0, 3})
            for (const int64_t weights : {int64_t{0}, kTopK}) {
                PackedRows packed{nullptr, kTokens, payload, scales, weights};
                Buffer<uint8_t> data(kTokens * packed.width());
                for (int64_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i % 61);  // no NaN
                packed.data = data.data();
                Buffer<uint8_t> got(rows.size() * payload);
                Buffer<float> got_scales(rows.size() * scales), got_weights(weights > 0 ? rows.size() : 0);
                const RowOrder order{rows.data(), rows.size(), kTopK};
                cpu::unpack_rows(packed, order, got.data(), {got_scales.data(), scales, 1},
                                 got_weights.data(), threads());
                for (int64_t i = 0; i < rows.size(); ++i) {
                    const int64_t row = order.token(i);
                    const uint8_t* from = data.data() + row * packed.width();
                    for (int64_t b = 0; b < payload; ++b)
                        EXPECT(got[i * payload + b] == (row < 0 ? 0 : from[b]));
                    for (int64_t c = 0; c < scales; ++c) {
                        float wanted = 1.0f;
                        if (row >= 0) std::memcpy(&wanted, from + packed.scales_at() + 4 * c, 4);
                        EXPECT(got_scales[i * scales + c] == wanted);
                    }
                    if (weights == 0) continue;
                    float wanted = 0.0f;
                    if (row >= 0) std::memcpy(&wanted, from + packed.weights_at() + 4 * (rows[i] % kTopK), 4);
                    EXPECT(got_weights[i] == wanted);
                }
            }
}

}  // namespace
