// formats/quotient.h against IEEE division, for every significand: prints how many quotients differ of
//   scales        a / 448 and a / 65024, with a at both ends and in the middle of its range
//   multipliers   448 / d and 65024 / d, for approximate reciprocals of d that are exact, and off by one in
//   the
//                 last place either way
//   reciprocals   1 / d with the exact approximation
#include <cstdio>
#include <initializer_list>

#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/quotient.h"
#include "formats/scale.h"

using namespace dse;

int main() {
    long scales = 0, multipliers = 0, reciprocals = 0;
    const auto differ = [](float a, float b) { return float_bits(a) != float_bits(b); };
    for (uint32_t m = 0; m < 1u << 23; ++m) {
        const float d = bits_float(kFloatOneBits + m);
        for (const float max_code : {E4M3::kMax, E5M6::kMax}) {
            for (const float power : {kMinAmax, 1.0f, 0x1p127f})
                scales +=
                    differ(corrected_quotient(d * power, max_code, 1.0f / max_code), d * power / max_code);
            for (const int off : {-1, 0, 1}) {
                const float approximate = bits_float(float_bits(1.0f / d) + static_cast<uint32_t>(off));
                const float reciprocal = refined_reciprocal(d, approximate);
                multipliers += differ(corrected_quotient(max_code, d, reciprocal), max_code / d);
            }
        }
        reciprocals += differ(corrected_quotient(1.0f, d, refined_reciprocal(d, 1.0f / d)), 1.0f / d);
    }
    std::printf("%ld %ld %ld\n", scales, multipliers, reciprocals);
}
