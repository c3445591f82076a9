// The AdamW step on tensors of ragged sizes and strides, all kinds of numbers, and buffers of the exact size,
// compared with the generic tier.
#include "cpu/optimizer.h"

#include "formats/bf16.h"
#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

constexpr AdamwConstants kConstants{0.5f, 0.9f, 0.1f, 0.95f, 0.05f, 1.5f, 1e-8f, 0.999f, 1e-3f};
constexpr int64_t kSizes[] = {1, 0, 15, 16, 17, 0, 0, 255, 256, 257, 1, 40000, 33, 0};

// Tensors of kSizes that lie `step` elements apart in their buffers; moments in BF16 or FP32.
struct Tensors {
    Tensors(int64_t step, bool bf16_exp_avg, bool bf16_exp_avg_sq) {
        for (const int64_t count : kSizes) {
            const int64_t extent = count == 0 ? 0 : (count - 1) * step + 1;
            const auto buffer = [&](int64_t bytes, uint32_t seed) {
                buffers.emplace_back(extent * bytes);
                fill_bits(buffers.back(), static_cast<uint32_t>(count) * 4 + seed);
                return static_cast<void*>(buffers.back().data());
            };
            cpu::AdamwTensor x{{static_cast<float*>(buffer(4, 0)), static_cast<float*>(buffer(4, 1)),
                                buffer(bf16_exp_avg ? 2 : 4, 2), buffer(bf16_exp_avg_sq ? 2 : 4, 3)},
                               bf16_exp_avg,
                               bf16_exp_avg_sq,
                               count,
                               {},
                               {}};
            if (step > 1) {
                x.sizes = {count};
                for (auto& strides : x.strides) strides = {step};
            }
            all.push_back(x);
        }
    }

    // The bits of one part, any NaN as one and the same: which of several a sum keeps is left open.
    std::vector<uint32_t> bits(size_t part) const {
        std::vector<uint32_t> result;
        for (size_t i = part; i < buffers.size(); i += 4) {
            const bool bf16 = part > 1 && (part == 2 ? all[0].bf16_exp_avg : all[0].bf16_exp_avg_sq);
            const auto* bytes = buffers[i].data();
            for (int64_t at = 0; at < buffers[i].size(); at += bf16 ? 2 : 4) {
                uint32_t u = 0;
                std::memcpy(&u, bytes + at, bf16 ? 2 : 4);
                if (bf16) u <<= 16;
                result.push_back((u & 0x7fffffffu) > kFloatInfBits ? 0x7fc00000u : u);
            }
        }
        return result;
    }

    std::vector<Buffer<unsigned char>> buffers;
    std::vector<cpu::AdamwTensor> all;
};

SANITIZED_CASE(adamw_step) {
    for (const int64_t step : {1, 3})
        for (const bool bf16_exp_avg : {false, true})
            for (const bool bf16_exp_avg_sq : {false, true}) {
                Tensors current(step, bf16_exp_avg, bf16_exp_avg_sq),
                    generic(step, bf16_exp_avg, bf16_exp_avg_sq);
                const Tensors before(step, bf16_exp_avg, bf16_exp_avg_sq);
                cpu::adamw_step(current.all, kConstants, threads());
                on_generic([&] { cpu::adamw_step(generic.all, kConstants, threads()); });
                for (const size_t part : {0, 1, 2, 3}) EXPECT(current.bits(part) == generic.bits(part));
                EXPECT(current.bits(0) != before.bits(0));
                EXPECT(current.bits(1) == before.bits(1));
            }
}

SANITIZED_CASE(adamw_step_on_nothing) { cpu::adamw_step({}, kConstants, threads()); }

}  // namespace
