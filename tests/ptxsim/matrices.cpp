// ldmatrix and stmatrix: 8x8 matrices of 16-bit elements between shared memory and the lanes of a warp.
//
// Lanes 8 i .. 8 i + 7 give the addresses of the rows of matrix i. Lane l holds of row l / 4 the elements
// 2 (l % 4) and the next; transposed, of column l / 4.
#include <array>
#include <bit>
#include <cstring>

#include "execute.h"

namespace ptxsim {
namespace {

constexpr uint32_t kRowBytes = 16;

// Lane and half of a lane's 32-bit register that hold element (row, column).
struct Place {
    int lane, half;
};

Place place(int row, int column, bool transposed) {
    if (transposed) std::swap(row, column);
    return {row * 4 + column / 2, column % 2};
}

struct Rows {
    std::array<uint8_t*, kLanes> bytes{};
    std::array<uint64_t, kLanes> addresses{};
};

Rows touch_rows(Machine& machine, Warp& warp, const Instruction& instruction, bool write) {
    const int rows = instruction.count * 8;
    const Address& address = instruction.addresses[0];
    Touch touch;
    touch.space = instruction.space == Space::kGeneric ? Space::kGeneric : instruction.space;
    touch.bytes = kRowBytes;
    touch.write = write;
    touch.access.actor = warp.actor;
    touch.access.tick = warp.now;
    Rows result;
    Buffer* buffer = nullptr;
    for (int row = 0; row < rows; ++row) {
        const uint64_t at = machine.value(warp, address.base, row) + static_cast<uint64_t>(address.offset);
        uint64_t resolved = at;
        const Space space = Machine::resolve(touch.space, resolved);
        if (space != Space::kShared && space != Space::kSharedCluster) {
            machine.fail("SHARED_OOB", format("lane %d: row address %#llx is not in shared memory", row,
                                              (unsigned long long)at));
        }
        // Any lane may fetch any row; what the row's own lane knows decides whether it may be touched.
        result.bytes[row] = machine.touch(warp, touch, row, at, nullptr, buffer);
        result.addresses[row] = static_cast<uint32_t>(resolved);
    }
    for (int first = 0; first < rows; first += 8) {
        count_shared(machine.counters(warp), write, result.addresses.data(), 0xffu << first, kRowBytes);
    }
    return result;
}

}  // namespace

Outcome run_load_matrix(Machine& machine, Warp& warp, const Instruction& instruction) {
    const Rows rows = touch_rows(machine, warp, instruction, false);
    for (int matrix = 0; matrix < instruction.count; ++matrix) {
        std::array<uint32_t, kLanes> fragment{};
        for (int row = 0; row < 8; ++row) {
            for (int column = 0; column < 8; ++column) {
                uint16_t element;
                std::memcpy(&element, rows.bytes[matrix * 8 + row] + 2 * column, 2);
                const Place to = place(row, column, instruction.transposed);
                fragment[to.lane] |= static_cast<uint32_t>(element) << (16 * to.half);
            }
        }
        const Slot output = instruction.outputs[matrix];
        if (output == kNoSlot) continue;
        uint64_t* lanes = warp.lanes(output);
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = fragment[lane];
        warp.set_defined(output, 0xffffffff);
    }
    return Outcome::kAdvance;
}

Outcome run_store_matrix(Machine& machine, Warp& warp, const Instruction& instruction) {
    const Rows rows = touch_rows(machine, warp, instruction, true);
    for (int matrix = 0; matrix < instruction.count; ++matrix) {
        const uint64_t* fragment = machine.values(warp, instruction.inputs[matrix], 0xffffffff);
        for (int row = 0; row < 8; ++row) {
            for (int column = 0; column < 8; ++column) {
                const Place from = place(row, column, instruction.transposed);
                const auto element = static_cast<uint16_t>(fragment[from.lane] >> (16 * from.half));
                std::memcpy(rows.bytes[matrix * 8 + row] + 2 * column, &element, 2);
            }
        }
    }
    return Outcome::kAdvance;
}

}  // namespace ptxsim
