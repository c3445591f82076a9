#include "prepared.h"

namespace ptxsim {
namespace {

void prepare(const Instruction& instruction, Prepared& prepared) {
    prepared.instruction = &instruction;
    prepared.plain = instruction.plain;
    prepared.guard = instruction.guard;
    prepared.guard_negated = instruction.guard_negated;
    const std::string opcode = opcode_name(instruction.text);
    if (opcode == "mov") prepared.undefined = Prepared::Undefined::kCopy;
    if (opcode == "selp") prepared.undefined = Prepared::Undefined::kSelect;
    prepared.divides = (opcode == "div" || opcode == "rem") && !type_is_float(instruction.type);
    prepared.many = instruction.inputs.size() > 4 || instruction.outputs.size() > 4;
    if (prepared.many) return;
    for (Slot slot : instruction.inputs) {
        if (slot != kNoSlot) prepared.input[prepared.inputs++] = slot;
    }
    for (Slot slot : instruction.outputs) {
        if (slot != kNoSlot) prepared.output[prepared.outputs++] = slot;
    }
}

}  // namespace

PreparedKernel::PreparedKernel(const Kernel& kernel_code)
    : kernel(kernel_code), code(kernel_code.code.size()) {
    for (size_t i = 0; i < code.size(); ++i) {
        const Instruction& instruction = kernel.code[i];
        prepare(instruction, code[i]);
        switch (instruction.opcode) {
            case Opcode::kCpAsync:
                copies = true;
                break;
            case Opcode::kMbarrierInit:
            case Opcode::kWgmma:
            case Opcode::kBulkLoad:
            case Opcode::kBulkStore:
            case Opcode::kBulkReduce:
            case Opcode::kTensorLoad:
            case Opcode::kTensorStore:
            case Opcode::kTensorReduce:
            case Opcode::kProxyFence:
            case Opcode::kCpAsyncMbarrierArrive:
                async = true;
                break;
            default:
                break;
        }
    }
}

Slot track_definitions(const Prepared& prepared, std::vector<uint32_t>& defined, const uint64_t* registers,
                       uint32_t mask) {
    const Slot* inputs = prepared.input;
    const Slot* outputs = prepared.output;
    size_t input_count = prepared.inputs, output_count = prepared.outputs;
    if (prepared.many) {
        const Instruction& instruction = *prepared.instruction;
        inputs = instruction.inputs.data();
        outputs = instruction.outputs.data();
        input_count = instruction.inputs.size();
        output_count = instruction.outputs.size();
    }
    uint32_t known = mask;
    if (prepared.undefined == Prepared::Undefined::kSelect && input_count == 3) {
        const Slot predicate = inputs[2];
        if (mask & ~defined[predicate]) return predicate;
        known = 0;
        for (int lane = 0; lane < kLanes; ++lane) {
            const bool first = registers[static_cast<size_t>(predicate) * kLanes + lane] & 1;
            known |= defined[inputs[first ? 0 : 1]] & mask & (1u << lane);
        }
    } else {
        for (size_t i = 0; i < input_count; ++i) {
            if (inputs[i] == kNoSlot) continue;
            const uint32_t here = defined[inputs[i]];
            if (mask & ~here && prepared.undefined == Prepared::Undefined::kFault) return inputs[i];
            known &= here;
        }
    }
    for (size_t i = 0; i < output_count; ++i) {
        if (outputs[i] == kNoSlot) continue;
        uint32_t& state = defined[outputs[i]];
        state = (state & ~mask) | known;
    }
    return kNoSlot;
}

uint32_t zero_divisors(const Prepared& prepared, std::vector<uint32_t>& defined, const uint64_t* registers,
                       uint32_t mask) {
    const uint64_t* divisors = registers + static_cast<size_t>(prepared.input[1]) * kLanes;
    const int bits = 8 * type_bytes(prepared.instruction->type);
    const uint64_t used = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
    uint32_t zero = 0;
    for (int lane = 0; lane < kLanes; ++lane) zero |= uint32_t{(divisors[lane] & used) == 0} << lane;
    zero &= mask;
    defined[prepared.output[0]] &= ~zero;
    return zero;
}

}  // namespace ptxsim
