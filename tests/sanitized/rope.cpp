// Heads of ragged widths that lie apart, in 16 bits all kinds of numbers among them, in buffers of the exact
// size, compared with the generic tier. (In FP32 a NaN's bits are those of either factor.)
#include "cpu/rope.h"

#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

constexpr int64_t kSequences = 2, kTokens = 5, kHeads = 3;

// [sequences, tokens, heads, columns] of T, heads `gap` elements apart, the last one ending the buffer.
template <class T>
struct Heads {
    Heads(int64_t heads, int64_t columns, int64_t gap, uint32_t seed)
        : buffer(kSequences * kTokens * heads * (columns + gap) - gap) {
        if constexpr (sizeof(T) == 4)
            fill_normal(buffer, seed);
        else
            fill_bits(buffer, seed);
        const int64_t token = heads * (columns + gap);
        rows = {buffer.data(), kTokens * token, columns + gap, token};
    }
    Buffer<T> buffer;
    HeadRows rows;
};

template <class T>
void check(FloatType type, int64_t plain, int64_t rotated, int64_t values, int64_t gap) {
    Buffer<float> rotation(kTokens * rotated);
    fill_normal(rotation, 1);
    const RopeShape shape{type, kSequences, kTokens, kHeads, plain, rotated, values, rotation.data()};
    Heads<T> kv(kHeads, plain + values, gap, 2), k_rope(1, rotated, gap, 3),
        grad_k(kHeads, plain + rotated, gap, 4), grad_v(kHeads, values, gap, 5);
    struct Results {
        Heads<T> q, k, grad_q, grad_kv, grad_k_rope;
    };
    const auto results = [&] {
        return Results{Heads<T>(kHeads, plain + rotated, gap, 6), Heads<T>(kHeads, plain + rotated, gap, 7),
                       Heads<T>(kHeads, plain + rotated, gap, 8), Heads<T>(kHeads, plain + values, gap, 9),
                       Heads<T>(1, rotated, gap, 10)};
    };
    const auto run = [&](Results& r) {
        cpu::rope_heads(shape, r.q.rows, kv.rows, k_rope.rows, r.k.rows, threads());
        cpu::rope_heads_backward(shape, r.grad_q.rows, grad_k.rows, grad_v.rows, r.grad_kv.rows,
                                 r.grad_k_rope.rows, threads());
    };
    Results current = results(), generic = results();
    run(current);
    on_generic([&] { run(generic); });
    EXPECT(current.k.buffer == generic.k.buffer);
    EXPECT(current.q.buffer == generic.q.buffer);
    EXPECT(current.grad_q.buffer == generic.grad_q.buffer);
    EXPECT(current.grad_kv.buffer == generic.grad_kv.buffer);
    EXPECT(current.grad_k_rope.buffer == generic.grad_k_rope.buffer);
}

template <class T>
void check_shapes(FloatType type) {
    for (const int64_t gap : {0, 3})
        for (const int64_t rotated : {0, 2, 16, 64, 70, 130}) {
            check<T>(type, 1, rotated, 1, gap);
            check<T>(type, 32, rotated, 7, gap);
            check<T>(type, 67, rotated, 128, gap);
        }
}

SANITIZED_CASE(rope_of_floats) { check_shapes<float>(FloatType::kFloat32); }
SANITIZED_CASE(rope_of_bf16) { check_shapes<Bf16>(FloatType::kBfloat16); }
SANITIZED_CASE(rope_of_f16) { check_shapes<F16>(FloatType::kFloat16); }

}  // namespace
