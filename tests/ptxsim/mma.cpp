// mma.sync m16n8k*: the tensor core of sm_80 and later, row-major A times column-major B.
//
// With g = lane / 4, t = lane % 4 and e elements in a 32-bit register (2 of half or bf16, 4 of 8 bits):
//   register r of A: row g + 8 (r % 2), columns t e .. + e, plus 4 e (r / 2)
//   register r of B: rows t e .. + e, plus 4 e r; column g
//   element i of C and D: row g + 8 (i / 2), column 2 t + i % 2
#include <array>
#include <cmath>

#include "execute.h"
#include "formats.h"
#include "tensor_sum.h"

namespace ptxsim {
namespace {

constexpr int kRows = 16, kColumns = 8, kMostDepth = 32;

int elements_per_register(Machine& machine, Type type) {
    switch (type) {
        case Type::kF16:
        case Type::kBF16:
            return 2;
        case Type::kE4M3:
        case Type::kE5M2:
            return 4;
        default:
            machine.fail("UNSUPPORTED", std::string("mma with elements of type ") + type_name(type));
    }
}

double element(Type type, uint64_t bits, int index) {
    switch (type) {
        case Type::kF16:
            return half_to_float(static_cast<uint16_t>(bits >> (16 * index)));
        case Type::kBF16:
            return bf16_to_float(static_cast<uint16_t>(bits >> (16 * index)));
        case Type::kE4M3:
            return e4m3_to_float(static_cast<uint8_t>(bits >> (8 * index)));
        default:
            return e5m2_to_float(static_cast<uint8_t>(bits >> (8 * index)));
    }
}

struct Operands {
    double a[kRows][kMostDepth], b[kMostDepth][kColumns], c[kRows][kColumns];
};

// Where element i of C and D of a lane lies.
int c_row(int lane, int i) { return lane / 4 + 8 * (i / 2); }
int c_column(int lane, int i) { return 2 * (lane % 4) + i % 2; }

}  // namespace

Outcome run_mma(Machine& machine, Warp& warp, const Instruction& instruction) {
    const int depth = instruction.shape[2];
    if (instruction.shape[0] != kRows || instruction.shape[1] != kColumns || depth > kMostDepth) {
        machine.fail("UNSUPPORTED", "this shape of mma");
    }
    if (instruction.type != Type::kF32 || instruction.c_type != Type::kF32) {
        machine.fail("UNSUPPORTED", "mma with results of this type");
    }
    const int per_register = elements_per_register(machine, instruction.a_type);
    if (elements_per_register(machine, instruction.b_type) != per_register) {
        machine.fail("UNSUPPORTED", "mma of elements of different widths");
    }
    for (Slot slot : instruction.inputs) machine.require_defined(warp, slot, 0xffffffff);

    Operands operands;
    size_t input = 0;
    for (int r = 0; r < instruction.input_counts[0]; ++r, ++input) {
        const uint64_t* lanes = warp.lanes(instruction.inputs[input]);
        for (int lane = 0; lane < kLanes; ++lane) {
            const int row = lane / 4 + 8 * (r % 2),
                      column = lane % 4 * per_register + 4 * per_register * (r / 2);
            for (int i = 0; i < per_register; ++i) {
                operands.a[row][column + i] = element(instruction.a_type, lanes[lane], i);
            }
        }
    }
    for (int r = 0; r < instruction.input_counts[1]; ++r, ++input) {
        const uint64_t* lanes = warp.lanes(instruction.inputs[input]);
        for (int lane = 0; lane < kLanes; ++lane) {
            const int row = lane % 4 * per_register + 4 * per_register * r;
            for (int i = 0; i < per_register; ++i) {
                operands.b[row + i][lane / 4] = element(instruction.b_type, lanes[lane], i);
            }
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const Slot slot = instruction.inputs[input + static_cast<size_t>(i)];
            operands.c[c_row(lane, i)][c_column(lane, i)] = bits_to_float(warp.lanes(slot)[lane]);
        }
    }

    float result[kRows][kColumns];
    for (int row = 0; row < kRows; ++row) {
        if (machine.options.hwacc == 0) {
            double sums[kColumns];
            for (int n = 0; n < kColumns; ++n) sums[n] = operands.c[row][n];
            for (int k = 0; k < depth; ++k) {
                for (int n = 0; n < kColumns; ++n) sums[n] += operands.a[row][k] * operands.b[k][n];
            }
            for (int n = 0; n < kColumns; ++n) result[row][n] = static_cast<float>(sums[n]);
            continue;
        }
        for (int n = 0; n < kColumns; ++n) {
            double products[kMostDepth];
            for (int k = 0; k < depth; ++k) products[k] = operands.a[row][k] * operands.b[k][n];
            result[row][n] = tensor_sum(operands.c[row][n], products, depth, machine.options.hwacc);
        }
    }

    for (int i = 0; i < 4; ++i) {
        uint64_t* lanes = warp.lanes(instruction.outputs[i]);
        for (int lane = 0; lane < kLanes; ++lane) {
            lanes[lane] = float_to_bits(result[c_row(lane, i)][c_column(lane, i)]);
        }
        warp.set_defined(instruction.outputs[i], 0xffffffff);
    }
    machine.counters(warp).multiply_adds += static_cast<uint64_t>(kRows) * kColumns * depth;
    return Outcome::kAdvance;
}

}  // namespace ptxsim
