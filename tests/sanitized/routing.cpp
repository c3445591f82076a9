// The routing family on shapes around the vector width, choices full of ties, NaN and infinities, and buffers
// of the exact size: indices and load against a sort, everything bit for bit against the generic tier.
#include "cpu/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

struct Shape {
    int64_t tokens, experts;
    RouteOptions options;
};
const Shape kShapes[] = {
    {0, 8, {2, 4, 2, 1.0f, true}},    {1, 1, {1, 1, 1, 1.0f, true}},    {5, 6, {2, 6, 3, 2.5f, true}},
    {33, 15, {4, 5, 2, 1.0f, false}}, {70, 16, {4, 4, 2, 1.0f, true}},  {40, 17, {17, 1, 1, 1.0f, true}},
    {40, 33, {22, 3, 2, 1.0f, true}}, {100, 32, {4, 4, 2, 2.5f, true}}, {300, 256, {8, 8, 4, 2.5f, true}},
};
constexpr int64_t kGap = 3;  // between rows of logits, the last of which ends where the buffer ends

// Every third row has normal logits, the next few different ones, the third any bits.
struct Case {
    explicit Case(const Shape& s)
        : x(s.tokens == 0 ? 0 : (s.tokens - 1) * (s.experts + kGap) + s.experts),
          bias(s.experts),
          valid(s.tokens),
          logits{x.data(), s.tokens, s.experts, s.experts + kGap} {
        fill_bits(x, 1);
        Buffer<float> normal(x.size());
        fill_normal(normal, 2);
        for (int64_t i = 0; i < x.size(); ++i) {
            const int64_t row = i / (s.experts + kGap);
            if (row % 3 == 0) x[i] = normal[i];
            if (row % 3 == 1) x[i] = std::round(normal[i]);
        }
        fill_normal(bias, 3);
        for (int64_t e = 0; e < s.experts; ++e)
            if (e % 5 == 4) bias[e] = -std::numeric_limits<float>::infinity();
        for (int64_t t = 0; t < s.tokens; ++t) valid[t] = t % 4 != 2;
    }
    Buffer<float> x, bias;
    Buffer<bool> valid;
    Logits logits;
};

struct Routes {
    Routes(const Shape& s, const Case& c)
        : weights(s.tokens * s.options.top_k), indices(s.tokens * s.options.top_k), load(s.experts) {
        cpu::route(c.logits, c.bias.data(), c.valid.data(), s.options, weights.data(), indices.data(),
                   load.data(), threads());
    }
    Buffer<float> weights;
    Buffer<int32_t> indices, load;
};

// NaN may have any bits.
bool same(const Buffer<float>& a, const Buffer<float>& b) {
    for (int64_t i = 0; i < a.size(); ++i)
        if (std::memcmp(&a[i], &b[i], 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
    return true;
}

float or_lowest(float x) { return std::isnan(x) ? -std::numeric_limits<float>::infinity() : x; }

// The experts of one token, given their sigmoids.
std::vector<int32_t> sorted_choice(const float* scores, const float* bias, const Shape& s) {
    const auto best_first = [](const std::vector<float>& x) {
        std::vector<int32_t> order(x.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
        return order;
    };
    std::vector<float> choice(s.experts), groups;
    for (int64_t e = 0; e < s.experts; ++e) choice[e] = or_lowest(scores[e] + bias[e]);
    const int64_t size = s.experts / s.options.groups;
    for (int64_t g = 0; g < s.options.groups; ++g) {
        std::vector<float> group(choice.begin() + g * size, choice.begin() + (g + 1) * size);
        std::sort(group.rbegin(), group.rend());
        groups.push_back(size == 1 ? group[0] : or_lowest(group[0] + group[1]));
    }
    const std::vector<int32_t> ranked = best_first(groups);
    for (int64_t g = s.options.kept_groups; g < s.options.groups; ++g)
        std::fill_n(choice.begin() + ranked[g] * size, size, -std::numeric_limits<float>::infinity());
    std::vector<int32_t> order = best_first(choice);
    order.resize(s.options.top_k);
    return order;
}

SANITIZED_CASE(route) {
    for (const Shape& s : kShapes) {
        const Case c(s);
        const Routes routes(s, c);
        on_generic([&] {
            const Routes generic(s, c);
            EXPECT(generic.indices == routes.indices && generic.load == routes.load);
            EXPECT(same(generic.weights, routes.weights));
        });
        const Shape everything{s.tokens, s.experts, {s.experts, 1, 1, 1.0f, false}};
        const Routes all(everything, c);
        std::vector<int32_t> load(s.experts);
        for (int64_t t = 0; t < s.tokens; ++t) {
            std::vector<float> scores(s.experts);
            for (int64_t k = 0; k < s.experts; ++k)
                scores[all.indices[t * s.experts + k]] = all.weights[t * s.experts + k];
            const std::vector<int32_t> chosen = sorted_choice(scores.data(), c.bias.data(), s);
            for (int64_t k = 0; k < s.options.top_k; ++k) {
                EXPECT(routes.indices[t * s.options.top_k + k] == chosen[k]);
                load[chosen[k]] += c.valid[t];
            }
        }
        for (int64_t e = 0; e < s.experts; ++e) EXPECT(routes.load[e] == load[e]);
    }
}

SANITIZED_CASE(route_backward) {
    for (const Shape& s : kShapes) {
        const Case c(s);
        const Routes routes(s, c);
        Buffer<float> grad_weights(s.tokens * s.options.top_k);
        fill_normal(grad_weights, 4);
        const auto gradient = [&] {
            Buffer<float> grad(s.tokens * s.experts);
            cpu::route_backward(grad_weights.data(), c.logits, routes.indices.data(), s.options, grad.data(),
                                threads());
            return grad;
        };
        const Buffer<float> grad = gradient();
        on_generic([&] { EXPECT(same(gradient(), grad)); });
        for (int64_t t = 0; t < s.tokens; ++t)
            for (int64_t e = 0; e < s.experts; ++e) {
                const int32_t* chosen = routes.indices.data() + t * s.options.top_k;
                const bool is_chosen =
                    std::find(chosen, chosen + s.options.top_k, e) != chosen + s.options.top_k;
                EXPECT(is_chosen || grad[t * s.experts + e] == 0.0f);
            }
    }
}

SANITIZED_CASE(sequence_balance_loss_and_its_gradient) {
    for (const Shape& s : kShapes)
        for (const int64_t sequences : {1, 5}) {
            if (s.tokens % sequences != 0) continue;
            const Case c(s);
            const Routes routes(s, c);
            for (const bool* valid : {c.valid.data(), static_cast<const bool*>(nullptr)}) {
                const BalanceBatch batch{c.logits, routes.indices.data(), s.options.top_k, valid, sequences};
                const auto result = [&] {
                    Buffer<float> result(s.tokens * s.experts + 1);
                    cpu::sequence_balance_loss_backward(batch, 0.5, result.data(), threads());
                    result[s.tokens * s.experts] = cpu::sequence_balance_loss(batch, 0.5, threads());
                    return result;
                };
                const Buffer<float> current = result();
                on_generic([&] { EXPECT(same(result(), current)); });
                for (int64_t t = 0; t < s.tokens; ++t)
                    for (int64_t e = 0; e < s.experts; ++e)
                        EXPECT(batch.is_valid(t) || current[t * s.experts + e] == 0.0f);
            }
        }
}

SANITIZED_CASE(update_router_bias) {
    Buffer<float> bias(6);
    std::fill_n(bias.data(), 6, 1.0f);
    const int32_t load[] = {1, 2, 3, 1 << 30, 1 << 30, 1 << 30};
    cpu::update_router_bias(bias.data(), load, 2, 3, 0.5f);
    const float expected[] = {1.5f, 1.0f, 0.5f, 1.0f, 1.0f, 1.0f};
    for (int i = 0; i < 6; ++i) EXPECT(bias[i] == expected[i]);
}

}  // namespace
