// mma.sync m16n8k*: the tensor core of sm_80 and later, row-major A times column-major B.
//
// With g = lane / 4, t = lane % 4 and e elements in a 32-bit register (2 of half or bf16, 4 of 8 bits):
//   register r of A: row g + 8 (r % 2), columns t e .. + e, plus 4 e (r / 2)
//   register r of B: rows t e .. + e, plus 4 e r; column g
//   element i of C and D: row g + 8 (i / 2), column 2 t + i % 2
#include <array>

#include "execute.h"
#include "formats.h"
#include "tensor_tile.h"

namespace ptxsim {
namespace {

constexpr int kColumns = 8;

// Where element i of C and D of a lane lies.
size_t c_index(int lane, int i) {
    return static_cast<size_t>((lane / 4 + 8 * (i / 2)) * kColumns + 2 * (lane % 4) + i % 2);
}

}  // namespace

Outcome run_mma(Machine& machine, Warp& warp, const Instruction& instruction) {
    const int depth = instruction.shape[2];
    const int per_register = 4 / type_bytes(instruction.a_type);
    for (Slot slot : instruction.inputs) machine.require_defined(warp, slot, 0xffffffff);

    TensorTile tile(kColumns, depth);
    const auto bytes = [&](size_t input, int lane) {
        return reinterpret_cast<const uint8_t*>(&warp.lanes(instruction.inputs[input])[lane]);
    };
    size_t input = 0;
    for (int r = 0; r < instruction.input_counts[0]; ++r, ++input) {
        for (int lane = 0; lane < kLanes; ++lane) {
            tile.set_a(lane / 4 + 8 * (r % 2), per_register * (lane % 4 + 4 * (r / 2)), instruction.a_type,
                       bytes(input, lane), per_register);
        }
    }
    for (int r = 0; r < instruction.input_counts[1]; ++r, ++input) {
        for (int lane = 0; lane < kLanes; ++lane) {
            tile.set_b(lane / 4, per_register * (lane % 4 + 4 * r), instruction.b_type, bytes(input, lane),
                       per_register);
        }
    }
    std::array<float, kTileRows * kColumns> result;
    for (int i = 0; i < 4; ++i) {
        const uint64_t* lanes = warp.lanes(instruction.inputs[input + static_cast<size_t>(i)]);
        for (int lane = 0; lane < kLanes; ++lane) result[c_index(lane, i)] = bits_to_float(lanes[lane]);
    }
    tile.multiply_add(result.data(), machine.options.hwacc);
    for (int i = 0; i < 4; ++i) {
        uint64_t* lanes = warp.lanes(instruction.outputs[i]);
        for (int lane = 0; lane < kLanes; ++lane) {
            lanes[lane] = float_to_bits(result[c_index(lane, i)]);
        }
        warp.set_defined(instruction.outputs[i], 0xffffffff);
    }
    machine.counters(warp).multiply_adds += static_cast<uint64_t>(kTileRows) * kColumns * depth;
    return Outcome::kAdvance;
}

}  // namespace ptxsim
