// What the f32 and f64 instructions share: rounding directions, subnormal flushing, saturation, NaN results.
#pragma once
#include <cfenv>
#include <cmath>

#include "formats.h"
#include "program.h"

namespace ptxsim {

// The thread's rounding direction for the life of the object. Operands and result of the operation must pass
// through volatile variables, so that the compiler cannot move it out of the scope.
class RoundingScope {
  public:
    explicit RoundingScope(Rounding rounding) : saved_(std::fegetround()) {
        switch (rounding) {
            case Rounding::kZero:
                std::fesetround(FE_TOWARDZERO);
                break;
            case Rounding::kDown:
                std::fesetround(FE_DOWNWARD);
                break;
            case Rounding::kUp:
                std::fesetround(FE_UPWARD);
                break;
            default:
                std::fesetround(FE_TONEAREST);
        }
    }
    ~RoundingScope() { std::fesetround(saved_); }
    RoundingScope(const RoundingScope&) = delete;
    RoundingScope& operator=(const RoundingScope&) = delete;

  private:
    int saved_;
};

inline bool is_directed(Rounding rounding) {
    return rounding == Rounding::kZero || rounding == Rounding::kDown || rounding == Rounding::kUp;
}

inline float flush(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }
inline float flush_if(bool wanted, float value) { return wanted ? flush(value) : value; }
inline double flush_if(bool, double value) { return value; }  // f64 has no .ftz

inline uint64_t result_cell(float value) {
    return std::isnan(value) ? kCanonicalFloatNaN : float_to_bits(value);
}
inline uint64_t result_cell(double value) { return double_to_bits(value); }

// .sat: to [0, 1], NaN to +0.
template <class T>
inline T saturate_unit(T value) {
    return value > T{0} ? (value < T{1} ? value : T{1}) : T{0};
}

template <class T>
inline uint64_t finish(const Instruction& instruction, T value) {
    if (instruction.saturate) value = saturate_unit(value);
    return result_cell(flush_if(instruction.flush_subnormals, value));
}

}  // namespace ptxsim
