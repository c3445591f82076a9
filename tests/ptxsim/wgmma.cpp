// wgmma: matrix products that run beside the four warps of a warpgroup, read shared memory through the async
// proxy and write the warps' registers. Each warp has its own 16 rows of the 64; what it does is simulated
// warp by warp.
#include "wgmma.h"

#include <algorithm>
#include <cstring>

#include "engine.h"
#include "formats.h"
#include "tensor_tile.h"

namespace ptxsim {

constexpr uint32_t kWarpgroup = 4;
constexpr uint32_t kRowsPerWarp = kTileRows;
constexpr uint32_t kDepthBytes = 32;  // K of one instruction, in every type

struct WgmmaOp : AsyncOp {
    uint64_t a = 0, b = 0;  // descriptors
    bool accumulate = false;
    double sign = 1;  // of scale-a times scale-b
    Tick tick = 0;
    std::vector<Slot> held;  // registers in use until the warp has waited

    void complete(Machine& machine) override;
    bool touches(const Cta&) const override { return false; }  // the warp may not exit before it has waited
};

namespace {

std::vector<Slot> a_registers(const Instruction& instruction) {
    if (!instruction.a_in_registers) return {};
    return {instruction.inputs.begin(), instruction.inputs.begin() + 4};
}

// Inputs: A (a descriptor or four registers), B's descriptor, scale-d.
Slot b_operand(const Instruction& instruction) {
    return instruction.inputs[instruction.a_in_registers ? 4 : 1];
}
Slot scale_operand(const Instruction& instruction) {
    return instruction.inputs[instruction.a_in_registers ? 5 : 2];
}

// Row of the warp's 16 and column of register i in a lane.
int fragment_row(int i, int lane) { return lane / 4 + 8 * (i / 2 % 2); }
int fragment_column(int i, int lane) { return 8 * (i / 4) + 2 * (lane % 4) + i % 2; }

void set_a_from_memory(TensorTile& tile, const Cta& cta, Type type, const MatrixDescriptor& descriptor,
                       uint32_t first_row, double sign) {
    const int chunk = 16 / type_bytes(type);
    for (int row = 0; row < kTileRows; ++row)
        for (int i = 0; i < 2; ++i) {
            const uint32_t at = descriptor.at(first_row + static_cast<uint32_t>(row), 16u * i);
            tile.set_a(row, i * chunk, type, &cta.shared[at], chunk, sign);
        }
}

// A's fragment: register r of a lane holds bytes 16 (r / 2) + 4 (lane % 4) .. of row lane / 4 + 8 (r % 2).
void set_a_from_registers(TensorTile& tile, const Warp& warp, const Instruction& wgmma, double sign) {
    const int per_register = 4 / type_bytes(wgmma.a_type);
    for (int r = 0; r < 4; ++r)
        for (int lane = 0; lane < kLanes; ++lane) {
            const auto* bytes = reinterpret_cast<const uint8_t*>(&warp.lanes(wgmma.inputs[r])[lane]);
            tile.set_a(lane / 4 + 8 * (r % 2), per_register * (4 * (r / 2) + lane % 4), wgmma.a_type, bytes,
                       per_register, sign);
        }
}

void set_b(TensorTile& tile, const Cta& cta, Type type, const MatrixDescriptor& descriptor) {
    const int chunk = 16 / type_bytes(type);
    for (int column = 0; column < tile.columns; ++column)
        for (int i = 0; i < 2; ++i) {
            const uint32_t at = descriptor.at(static_cast<uint32_t>(column), 16u * i);
            tile.set_b(column, i * chunk, type, &cta.shared[at], chunk);
        }
}

void check_descriptor(Machine& machine, const MatrixDescriptor& descriptor, char which) {
    if (descriptor.base_offset != 0)
        machine.fail("WGMMA_DESC",
                     format("descriptor of %c: base offset %u: start the matrix where a swizzle pattern "
                            "starts",
                            which, descriptor.base_offset));
    if (descriptor.reserved_bits)
        machine.fail("WGMMA_DESC", format("descriptor of %c: reserved bits are set", which));
}

void touch_matrix(Machine& machine, const Warp& warp, const MatrixDescriptor& descriptor, uint32_t first_row,
                  uint32_t rows, const Access& access, const View& view) {
    std::vector<uint32_t> chunks;
    for (uint32_t row = first_row; row < first_row + rows; ++row)
        for (uint32_t byte = 0; byte < kDepthBytes; byte += 16) {
            chunks.push_back(descriptor.at(row, byte));
            machine.check_shared_bounds(*warp.cta, chunks.back(), 16);
        }
    machine.shared_read(*warp.cta, chunks, 16, access, view);
}

// The four warps must issue the same products in the same order.
void match_warpgroup(Machine& machine, Warp& warp, const WgmmaOp& op, const Instruction& instruction) {
    auto& issued = engine_cta(*warp.cta).issued[warp.index / kWarpgroup];
    const uint64_t count = engine_warp(warp).wgmma_count++;
    const auto [found, first] =
        issued.try_emplace(count, IssuedWgmma{&instruction, op.a, op.b, op.accumulate});
    IssuedWgmma& other = found->second;
    const bool same = other.instruction == &instruction && other.b == op.b &&
                      other.accumulate == op.accumulate && (instruction.a_in_registers || other.a == op.a);
    if (!first && !same)
        machine.fail("WGMMA_GROUP",
                     "the four warps of the warpgroup issue different wgmma, or with other operands");
    if (++other.seen == kWarpgroup) issued.erase(found);
}

void hold(Warp& warp, WgmmaOp& op, const Instruction& instruction) {
    op.held = instruction.outputs;
    for (const Slot slot : a_registers(instruction)) op.held.push_back(slot);
    for (const Slot slot : op.held) ++warp.busy[static_cast<size_t>(slot)];
}

// Registers may be used by wgmma only after a wgmma.fence that follows the last ordinary use, but for
// accumulators that the wgmma before (of the same shape) used.
void check_fence(Machine& machine, Warp& warp, const Instruction& instruction) {
    const EngineWarp& state = engine_warp(warp);
    if (!state.fenced) machine.fail("WGMMA_FENCE", "wgmma without a wgmma.fence before the warp's first one");
    std::vector<Slot> used = instruction.outputs;
    for (const Slot slot : a_registers(instruction)) used.push_back(slot);
    for (const Slot slot : used)
        if (warp.last_touch[static_cast<size_t>(slot)] > state.fence_sequence)
            machine.fail(
                "WGMMA_FENCE",
                format("register %s was used by other instructions after the last wgmma.fence",
                       warp.cta->launch->launch->kernel->slot_names[static_cast<size_t>(slot)].c_str()));
}

void retire(Warp& warp, const std::vector<std::shared_ptr<WgmmaOp>>& group, Machine& machine) {
    for (const auto& op : group) {
        machine.queue.finish(machine, *op);
        for (const Slot slot : op->held) --warp.busy[static_cast<size_t>(slot)];
        warp.known.raise(warp.cta->actor(ActorKind::kWgmma, warp.index), op->tick);
    }
}

}  // namespace

// Products of a warp finish in the order in which they were issued.
void WgmmaOp::complete(Machine& machine) {
    Warp& warp = *issuer;
    auto& order = engine_warp(warp).wgmma_order;
    while (order.front().get() != this) {
        const std::shared_ptr<WgmmaOp> earlier = order.front();
        machine.queue.finish(machine, *earlier);
    }
    order.pop_front();

    const Instruction& wgmma = *instruction;
    TensorTile tile(wgmma.shape[1], kDepthBytes / type_bytes(wgmma.a_type));
    if (wgmma.a_in_registers) {
        set_a_from_registers(tile, warp, wgmma, sign);
    } else {
        const uint32_t first_row = warp.index % kWarpgroup * kRowsPerWarp;
        set_a_from_memory(tile, *warp.cta, wgmma.a_type, MatrixDescriptor(a), first_row, sign);
    }
    set_b(tile, *warp.cta, wgmma.b_type, MatrixDescriptor(b));
    std::vector<float> c(static_cast<size_t>(kTileRows * tile.columns));
    const auto for_each_element = [&](auto function) {
        for (int i = 0; i < static_cast<int>(wgmma.outputs.size()); ++i) {
            uint64_t* lanes = warp.lanes(wgmma.outputs[static_cast<size_t>(i)]);
            for (int lane = 0; lane < kLanes; ++lane)
                function(
                    lanes[lane],
                    c[static_cast<size_t>(fragment_row(i, lane) * tile.columns + fragment_column(i, lane))]);
        }
    };
    if (accumulate) for_each_element([](uint64_t cell, float& value) { value = bits_to_float(cell); });
    tile.multiply_add(c.data(), machine.options.hwacc);
    for_each_element([](uint64_t& cell, float value) { cell = float_to_bits(value); });
    machine.counters(warp).multiply_adds +=
        uint64_t{kTileRows} * static_cast<uint64_t>(tile.columns * tile.depth);
}

Outcome run_wgmma(Machine& machine, Warp& warp, const Instruction& instruction) {
    for (size_t i = 2; i < instruction.immediates.size(); ++i)
        if (instruction.immediates[i] != 0) machine.fail("UNSUPPORTED", "wgmma of transposed operands");
    if (warp.cta->warps.size() < (warp.index / kWarpgroup + 1) * kWarpgroup)
        machine.fail("WGMMA_GROUP", "the warp belongs to no whole warpgroup of four");
    check_fence(machine, warp, instruction);

    auto op = std::make_shared<WgmmaOp>();
    const uint32_t all = 0xffffffff;
    if (!instruction.a_in_registers)
        op->a = machine.uniform(warp, instruction.inputs[0], all, "descriptor of A");
    op->b = machine.uniform(warp, b_operand(instruction), all, "descriptor of B");
    op->accumulate = machine.uniform(warp, scale_operand(instruction), all, "scale of D") & 1;
    op->sign = static_cast<double>(instruction.immediates[0] * instruction.immediates[1]);
    EngineWarp& state = engine_warp(warp);
    op->tick = ++state.wgmma_tick;
    match_warpgroup(machine, warp, *op, instruction);
    if (op->accumulate)
        for (const Slot slot : instruction.outputs) machine.require_defined(warp, slot, all);
    for (const Slot slot : a_registers(instruction)) machine.require_defined(warp, slot, all);

    const Clock known = published(warp, all);
    const View view = view_of(machine, warp, known);
    Access access;
    access.actor = warp.cta->actor(ActorKind::kWgmma, warp.index);
    access.tick = op->tick;
    access.async_proxy = true;
    if (!instruction.a_in_registers) {
        const MatrixDescriptor a(op->a);
        check_descriptor(machine, a, 'A');
        touch_matrix(machine, warp, a, warp.index % kWarpgroup * kRowsPerWarp, kRowsPerWarp, access, view);
    }
    const MatrixDescriptor b(op->b);
    check_descriptor(machine, b, 'B');
    touch_matrix(machine, warp, b, 0, static_cast<uint32_t>(instruction.shape[1]), access, view);

    hold(warp, *op, instruction);
    for (const Slot slot : instruction.outputs) warp.set_defined(slot, all);
    state.open_wgmma.push_back(op);
    state.wgmma_order.push_back(op);
    machine.add_async(op, warp, instruction);
    const int64_t mode = machine.options.wgmma_mode;
    if (mode == 0 || (mode == 2 && machine.random(2) == 0)) machine.queue.finish(machine, *op);
    if (mode == 1) op->due = machine.round + (int64_t{1} << 40);  // when the warp waits for it
    return Outcome::kAdvance;
}

Outcome run_wgmma_fence(Machine&, Warp& warp) {
    EngineWarp& state = engine_warp(warp);
    state.fenced = true;
    state.fence_sequence = warp.sequence++;
    warp.busy_registers = 1;  // from now on the warp's instructions are watched: see touch_registers
    return Outcome::kAdvance;
}

Outcome run_wgmma_commit(Machine&, Warp& warp) {
    EngineWarp& state = engine_warp(warp);
    state.wgmma_groups.push_back(std::exchange(state.open_wgmma, {}));
    return Outcome::kAdvance;
}

Outcome run_wgmma_wait(Machine& machine, Warp& warp, const Instruction& instruction) {
    EngineWarp& state = engine_warp(warp);
    while (static_cast<int64_t>(state.wgmma_groups.size()) > instruction.immediates[0]) {
        retire(warp, state.wgmma_groups.front(), machine);
        state.wgmma_groups.pop_front();
    }
    return Outcome::kAdvance;
}

void touch_registers(Machine& machine, Warp& warp, const Instruction& instruction) {
    const auto touch = [&](Slot slot) {
        if (slot == kNoSlot) return;
        if (warp.busy[static_cast<size_t>(slot)] != 0)
            machine.fail(
                "WGMMA_REG",
                format("register %s is used while a wgmma in flight uses it: wgmma.wait_group is missing",
                       warp.cta->launch->launch->kernel->slot_names[static_cast<size_t>(slot)].c_str()));
        warp.last_touch[static_cast<size_t>(slot)] = warp.sequence;
    };
    for (const Slot slot : instruction.outputs) touch(slot);
    for (const Slot slot : instruction.inputs) touch(slot);
    for (const Address& address : instruction.addresses) touch(address.base);
    touch(instruction.guard);
}

void check_wgmma_at_exit(Machine& machine, Warp& warp) {
    if (!warp.async) return;
    const EngineWarp& state = engine_warp(warp);
    if (!state.open_wgmma.empty() || !state.wgmma_groups.empty())
        machine.fail("WGMMA_EXIT", "the warp exits while a wgmma may still run: wgmma.wait_group is missing");
    const uint32_t first = warp.index / kWarpgroup * kWarpgroup;
    for (uint32_t i = first; state.wgmma_count > 0 && i < first + kWarpgroup; ++i) {
        Warp& other = *warp.cta->warps[i];
        const bool ended = &other == &warp || other.alive == 0;
        if (ended && engine_warp(other).wgmma_count != state.wgmma_count)
            machine.fail("WGMMA_GROUP", "the four warps of the warpgroup issued different numbers of wgmma");
    }
}

}  // namespace ptxsim
