// wgmma: matrix products that run beside the four warps of a warpgroup, read shared memory through the async
// proxy and write the warps' registers. Each warp has its own 16 rows of the 64; what it does is simulated
// warp by warp.
#include "wgmma.h"

#include <algorithm>
#include <cstring>

#include "engine.h"
#include "formats.h"
#include "tensor_sum.h"

namespace ptxsim {

constexpr uint32_t kWarpgroup = 4;
constexpr uint32_t kRowsPerWarp = 16;
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

uint32_t depth(const Instruction& instruction) {
    return kDepthBytes / static_cast<uint32_t>(type_bytes(instruction.a_type));
}

// Row of the warp's 16 and column of register i in a lane.
uint32_t fragment_row(uint32_t i, uint32_t lane) { return lane / 4 + 8 * (i / 2 % 2); }
uint32_t fragment_column(uint32_t i, uint32_t lane) { return 8 * (i / 4) + 2 * (lane % 4) + i % 2; }

std::vector<double> decode(Type type, const std::vector<uint8_t>& bytes) {
    std::vector<double> values(bytes.size() / static_cast<size_t>(type_bytes(type)));
    for (size_t i = 0; i < values.size(); ++i)
        values[i] = operand_element(type, bytes.data(), static_cast<uint32_t>(i));
    return values;
}

// a b' of the warp's rows, exact as far as FP64 goes: [16, columns].
std::vector<double> sums_of_products(const std::vector<double>& a, const std::vector<double>& b,
                                     uint32_t columns, uint32_t k) {
    std::vector<double> transposed(b.size()), sums(kRowsPerWarp * columns, 0.0);
    for (uint32_t column = 0; column < columns; ++column)
        for (uint32_t j = 0; j < k; ++j) transposed[j * columns + column] = b[column * k + j];
    for (uint32_t row = 0; row < kRowsPerWarp; ++row)
        for (uint32_t j = 0; j < k; ++j) {
            const double factor = a[row * k + j];
            for (uint32_t column = 0; column < columns; ++column)
                sums[row * columns + column] += factor * transposed[j * columns + column];
        }
    return sums;
}

std::vector<uint8_t> read_matrix(const Cta& cta, const MatrixDescriptor& descriptor, uint32_t first_row,
                                 uint32_t rows) {
    std::vector<uint8_t> bytes(rows * kDepthBytes);
    for (uint32_t row = 0; row < rows; ++row)
        for (uint32_t byte = 0; byte < kDepthBytes; byte += 16)
            std::memcpy(&bytes[row * kDepthBytes + byte], &cta.shared[descriptor.at(first_row + row, byte)],
                        16);
    return bytes;
}

// A's fragment: register r of a lane holds bytes 16 (r / 2) + 4 (lane % 4) .. of row lane / 4 + 8 (r % 2).
std::vector<uint8_t> read_a_registers(const Warp& warp, const Instruction& instruction) {
    std::vector<uint8_t> bytes(kRowsPerWarp * kDepthBytes);
    for (uint32_t r = 0; r < 4; ++r)
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            const auto value = static_cast<uint32_t>(warp.lanes(instruction.inputs[r])[lane]);
            std::memcpy(&bytes[(lane / 4 + 8 * (r % 2)) * kDepthBytes + 16 * (r / 2) + 4 * (lane % 4)],
                        &value, 4);
        }
    return bytes;
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
    for (uint32_t row = first_row; row < first_row + rows; ++row)
        for (uint32_t byte = 0; byte < kDepthBytes; byte += 16) {
            const uint32_t at = descriptor.at(row, byte);
            machine.check_shared_bounds(*warp.cta, at, 16);
            machine.shared_read(*warp.cta, at, 16, access, view);
        }
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

double operand_element(Type type, const uint8_t* bytes, uint32_t index) {
    if (type == Type::kE4M3) return e4m3_to_float(bytes[index]);
    if (type == Type::kE5M2) return e5m2_to_float(bytes[index]);
    uint16_t half;
    std::memcpy(&half, bytes + 2 * index, 2);
    return type == Type::kBF16 ? bf16_to_float(half) : half_to_float(half);
}

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
    const auto columns = static_cast<uint32_t>(wgmma.shape[1]), k = depth(wgmma);
    const MatrixDescriptor b_at(b);
    const std::vector<double> a_values =
        decode(wgmma.a_type, wgmma.a_in_registers
                                 ? read_a_registers(warp, wgmma)
                                 : read_matrix(*warp.cta, MatrixDescriptor(a),
                                               warp.index % kWarpgroup * kRowsPerWarp, kRowsPerWarp));
    const std::vector<double> b_values = decode(wgmma.b_type, read_matrix(*warp.cta, b_at, 0, columns));
    std::vector<double> sums;
    if (machine.options.hwacc == 0) sums = sums_of_products(a_values, b_values, columns, k);
    std::array<double, kDepthBytes> products;
    for (uint32_t i = 0; i < wgmma.outputs.size(); ++i) {
        uint64_t* accumulator = warp.lanes(wgmma.outputs[i]);
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            const uint32_t row = fragment_row(i, lane), column = fragment_column(i, lane);
            const double c = accumulate ? bits_to_float(accumulator[lane]) : 0.0;
            float result;
            if (machine.options.hwacc == 0) {
                result = static_cast<float>(c + sign * sums[row * columns + column]);
            } else {
                for (uint32_t j = 0; j < k; ++j)
                    products[j] = sign * a_values[row * k + j] * b_values[column * k + j];
                result = tensor_sum(c, products.data(), static_cast<int>(k), machine.options.hwacc);
            }
            accumulator[lane] = float_to_bits(result);
        }
    }
    machine.counters(warp).multiply_adds += uint64_t{kRowsPerWarp} * columns * k;
}

Outcome run_wgmma(Machine& machine, Warp& warp, const Instruction& instruction) {
    const bool halves = instruction.a_type == Type::kBF16 || instruction.a_type == Type::kF16;
    const bool bytes = instruction.a_type == Type::kE4M3 || instruction.a_type == Type::kE5M2;
    if (instruction.type != Type::kF32 || !(halves || bytes))
        machine.fail("UNSUPPORTED", "wgmma of other types than FP8, BF16 and FP16 with FP32 accumulators");
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
