// What the f32 and f64 instructions share: rounding directions, subnormal flushing, saturation, NaN results.
#pragma once
#include <cfenv>
#include <cmath>

#include "alu_lanes.h"
#include "formats.h"
#include "program.h"

namespace ptxsim {

// The thread's rounding direction for the life of the object. What is computed within must be pinned on both
// sides.
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

// The compiler knows nothing of rounding directions: it moves no computation from or to `values` across this
// point.
template <class Values>
inline void pin(Values& values) {
    asm volatile("" : : "r"(&values) : "memory");
}

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

// An operation of one, two or three operands with .ftz, .sat and a rounding direction. Lanes outside the mask
// compute too, but keep their results.
template <class T, auto operation, int kOperands>
void qualified(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    T operands[kOperands][kLanes], results[kLanes];
    for (int i = 0; i < kOperands; ++i) {
        const uint64_t* cells = row(registers, instruction.inputs[static_cast<size_t>(i)]);
        for (int lane = 0; lane < kLanes; ++lane)
            operands[i][lane] = flush_if(instruction.flush_subnormals, from_cell<T>(cells[lane]));
    }
    pin(operands);
    {
        const RoundingScope scope(instruction.rounding);
        pin(operands);
        for (int lane = 0; lane < kLanes; ++lane) {
            if constexpr (kOperands == 1)
                results[lane] = operation(operands[0][lane]);
            else if constexpr (kOperands == 2)
                results[lane] = operation(operands[0][lane], operands[1][lane]);
            else
                results[lane] = operation(operands[0][lane], operands[1][lane], operands[2][lane]);
        }
        pin(results);
    }
    uint64_t* cells = row(registers, instruction.outputs[0]);
    for_lanes(mask, [&](int lane) { cells[lane] = finish(instruction, results[lane]); });
}

}  // namespace ptxsim
