// Copies through tensor maps (TMA): boxes of up to five dimensions, with swizzled rows in shared memory and
// zeros (or NaN) where the box leaves the tensor.
#include <algorithm>
#include <bit>
#include <cstring>

#include "bulk_copy.h"
#include "tensor_map.h"

namespace ptxsim {
namespace {

using Coordinates = std::array<int32_t, kMaxTensorRank>;

struct Row {
    uint32_t byte = 0;     // of the box, where the row begins
    bool inside = true;    // in dimensions 1 and up
    uint64_t address = 0;  // global, of the first element inside
    uint32_t skip = 0;     // bytes of the row before that
    uint32_t bytes = 0;    // inside the tensor
};

// The box's rows of box[0] elements, and what part of each lies inside the tensor.
template <class Function>
void for_each_row(const TensorMap& map, const Coordinates& at, Function function) {
    const uint32_t row_bytes = map.box[0] * uint32_t{map.element_bytes};
    const int64_t first = std::max<int64_t>(at[0], 0);
    const int64_t last = std::min<int64_t>(int64_t{at[0]} + map.box[0], map.size[0]);
    for (uint32_t index = 0; index < map.box_rows(); ++index) {
        Row row;
        row.byte = index * row_bytes;
        row.address = map.address;
        uint32_t rest = index;
        for (uint32_t i = 1; i < map.rank; ++i) {
            const int64_t position = int64_t{at[i]} + rest % map.box[i];
            rest /= map.box[i];
            if (position < 0 || position >= map.size[i]) row.inside = false;
            row.address += static_cast<uint64_t>(position) * map.stride[i - 1];
        }
        if (row.inside && first < last) {
            row.skip = static_cast<uint32_t>(first - at[0]) * map.element_bytes;
            row.bytes = static_cast<uint32_t>(last - first) * map.element_bytes;
            row.address += static_cast<uint64_t>(first) * map.element_bytes;
        }
        function(row);
    }
}

// What an element outside the tensor reads as, at a byte of the row.
uint8_t fill_byte(const TensorMap& map, uint32_t byte) {
    if (!map.fill_with_nan) return 0;
    const uint32_t in_element =
        byte % map.element_bytes;  // all bits but the sign's are set: a NaN in every type
    return in_element + 1 == map.element_bytes ? 0x7f : 0xff;
}

struct TensorLoad : LoadOp {
    TensorMap map;
    Coordinates at{};

    void copy(Machine&, uint8_t* shared, uint32_t offset) const override {
        const uint32_t row_bytes = map.box[0] * uint32_t{map.element_bytes};
        std::vector<uint8_t> buffer(row_bytes);
        for_each_row(map, at, [&](const Row& row) {
            for (uint32_t i = 0; i < row_bytes; ++i) buffer[i] = fill_byte(map, i);
            if (row.bytes)
                std::memcpy(&buffer[row.skip], reinterpret_cast<const void*>(row.address), row.bytes);
            for (uint32_t chunk = 0; chunk < row_bytes; chunk += 16)
                std::memcpy(shared + swizzled(offset + row.byte + chunk, map.swizzle), &buffer[chunk], 16);
        });
    }
};

struct TensorStore : BulkOp {
    TensorMap map;
    Coordinates at{};

    void write(Machine&) const override {
        const uint32_t row_bytes = map.box[0] * uint32_t{map.element_bytes};
        std::vector<uint8_t> buffer(row_bytes);
        for_each_row(map, at, [&](const Row& row) {
            for (uint32_t chunk = 0; chunk < row_bytes; chunk += 16)
                std::memcpy(&buffer[chunk],
                            &captured[swizzled(offset + row.byte + chunk, map.swizzle) - offset], 16);
            if (row.bytes) std::memcpy(reinterpret_cast<void*>(row.address), &buffer[row.skip], row.bytes);
        });
    }
};

TensorMap read_map(Machine& machine, Warp& warp, const Instruction& instruction, const Address& operand,
                   int lane, const Clock& known) {
    uint64_t address = address_of(machine, warp, operand, lane);
    if (address % 64 != 0)
        machine.fail("TENSOR_MAP", format("lane %d: the tensor map is not aligned to 64 bytes", lane));
    TensorMap map;
    switch (Machine::resolve(Space::kGeneric, address)) {
        case Space::kParam: {
            const auto& parameters = warp.cta->launch->launch->parameters;
            if (address + sizeof(CUtensorMap) > parameters.size())
                machine.fail("TENSOR_MAP",
                             format("lane %d: the tensor map leaves the kernel's parameters", lane));
            std::memcpy(&map, &parameters[address], sizeof map);
            break;
        }
        case Space::kGlobal: {
            Access access;  // read through a proxy of its own: no fence of the async proxy's orders writes
                            // before it
            access.actor = warp.actor;
            access.tick = warp.now;
            access.lane = static_cast<uint8_t>(lane);
            machine.global_touch(address, sizeof(CUtensorMap), false, access, view_of(machine, warp, known),
                                 nullptr, nullptr);
            std::memcpy(&map, reinterpret_cast<const void*>(address), sizeof map);
            break;
        }
        default:
            machine.fail("TENSOR_MAP",
                         format("lane %d: the tensor map lies in local or shared memory: pass it as a "
                                "const __grid_constant__ parameter",
                                lane));
    }
    if (!map.intact())
        machine.fail("TENSOR_MAP",
                     format("lane %d: these 128 bytes are no tensor map, or one that was written to", lane));
    if (map.rank != instruction.count)
        machine.fail("TENSOR_MAP", format("lane %d: the tensor map has %u dimensions, the instruction %u",
                                          lane, map.rank, instruction.count));
    return map;
}

Coordinates read_coordinates(const Machine& machine, const Warp& warp, const Instruction& instruction,
                             int lane) {
    Coordinates at{};
    for (size_t i = 0; i < instruction.count; ++i)
        at[i] = static_cast<int32_t>(machine.value(warp, instruction.inputs[i], lane));
    return at;
}

// A swizzle pattern repeats after 8 rows of its span. Hardware takes any multiple of 128 bytes and swizzles
// by address; this project's kernels must start where a pattern starts, or their own index arithmetic would
// be off.
uint32_t alignment_of(const TensorMap& map) { return map.swizzle == 0 ? 128 : 128u << map.swizzle; }

void touch_rows(Machine& machine, Warp& warp, const TensorMap& map, const Coordinates& at, bool write,
                const Access& access, const Clock& known) {
    const View view = view_of(machine, warp, known);
    Buffer* hint = nullptr;
    for_each_row(map, at, [&](const Row& row) {
        if (row.bytes)
            hint = &machine.global_touch(row.address, row.bytes, write, access, view, nullptr, hint);
    });
}

}  // namespace

Outcome run_tensor_load(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const Clock known = published(warp, 1u << lane);
        auto op = std::make_shared<TensorLoad>();
        op->map = read_map(machine, warp, instruction, instruction.addresses[1], lane, known);
        op->at = read_coordinates(machine, warp, instruction, lane);
        const uint16_t cta_mask =
            instruction.multicast
                ? static_cast<uint16_t>(machine.value(warp, instruction.inputs[instruction.count], lane))
                : 0;
        prepare_load(machine, warp, instruction, lane, op->map.box_bytes(), alignment_of(op->map), cta_mask,
                     *op, known);
        touch_rows(machine, warp, op->map, op->at, false, load_access(*op), known);
        machine.add_async(op, warp, instruction);
    }
    return Outcome::kAdvance;
}

Outcome run_tensor_store(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const Clock known = published(warp, 1u << lane);
        auto op = std::make_shared<TensorStore>();
        op->map = read_map(machine, warp, instruction, instruction.addresses[0], lane, known);
        op->at = read_coordinates(machine, warp, instruction, lane);
        prepare_store(machine, warp, instruction, lane, instruction.addresses[1], op->map.box_bytes(),
                      alignment_of(op->map), *op, known);
        touch_rows(machine, warp, op->map, op->at, true, store_access(warp, lane, *op), known);
        submit_store(machine, warp, instruction, lane, std::move(op));
    }
    return Outcome::kAdvance;
}

}  // namespace ptxsim
