#include "inspect.h"

#include <algorithm>
#include <bit>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

#include "fault.h"
#include "opcodes.h"
#include "parser.h"

namespace ptxsim {
namespace {

thread_local std::string last_error;
thread_local std::string description;

std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') result += '\\';
        result += c;
    }
    return result + "\"";
}

template <class Range, class Write>
void write_list(std::ostream& out, const Range& range, Write write) {
    out << '[';
    bool first = true;
    for (const auto& element : range) {
        if (!first) out << ", ";
        first = false;
        write(element);
    }
    out << ']';
}

void describe_instruction(std::ostream& out, const Instruction& instruction) {
    const auto number = [&](auto value) { out << static_cast<int64_t>(value); };
    out << "{\"line\": " << instruction.line << ", \"text\": " << quoted(instruction.text)
        << ", \"opcode\": " << quoted(opcode_name(instruction.opcode))
        << ", \"target\": " << instruction.target << ", \"guard\": " << instruction.guard
        << ", \"space\": " << static_cast<int>(instruction.space)
        << ", \"semantics\": " << static_cast<int>(instruction.semantics)
        << ", \"scope\": " << static_cast<int>(instruction.scope) << ", \"outputs\": ";
    write_list(out, instruction.outputs, number);
    out << ", \"inputs\": ";
    write_list(out, instruction.inputs, number);
    out << ", \"immediates\": ";
    write_list(out, instruction.immediates, number);
    out << ", \"targets\": ";
    write_list(out, instruction.targets, number);
    out << ", \"addresses\": ";
    write_list(out, instruction.addresses,
               [&](const Address& address) { out << '[' << address.base << ", " << address.offset << ']'; });
    out << '}';
}

void describe_kernel(std::ostream& out, const Kernel& kernel) {
    const auto number = [&](auto value) { out << static_cast<int64_t>(value); };
    out << "{\"name\": " << quoted(kernel.name) << ", \"static_shared\": " << kernel.static_shared_bytes
        << ", \"dynamic_shared\": " << kernel.dynamic_shared_address << ", \"local\": " << kernel.local_bytes
        << ", \"slots\": " << kernel.slots << ", \"parameter_bytes\": " << kernel.parameter_bytes
        << ", \"max_threads\": ";
    write_list(out, kernel.max_threads, number);
    out << ", \"required_threads\": ";
    write_list(out, kernel.required_threads, number);
    out << ", \"cluster\": ";
    write_list(out, kernel.cluster, number);
    out << ", \"parameters\": ";
    write_list(out, kernel.parameters, [&](const Parameter& parameter) {
        out << '[' << quoted(parameter.name) << ", " << parameter.offset << ", " << parameter.bytes << ']';
    });
    out << ", \"constants\": ";
    write_list(out, kernel.constants,
               [&](const auto& constant) { out << '[' << constant.first << ", " << constant.second << ']'; });
    out << ", \"code\": ";
    write_list(out, kernel.code,
               [&](const Instruction& instruction) { describe_instruction(out, instruction); });
    out << '}';
}

std::string describe(const Module& module) {
    std::ostringstream out;
    out << "{\"version\": " << quoted(module.version) << ", \"target\": " << quoted(module.target)
        << ", \"variables\": ";
    write_list(out, module.variables, [&](const auto& entry) {
        const Variable& variable = *entry.second;
        out << "{\"name\": " << quoted(variable.name)
            << ", \"address\": " << reinterpret_cast<uint64_t>(variable.data)
            << ", \"constant\": " << (variable.space == Space::kConst) << ", \"data\": ";
        write_list(out, std::vector<uint8_t>(variable.data, variable.data + variable.bytes),
                   [&](uint8_t byte) { out << static_cast<int>(byte); });
        out << '}';
    });
    out << ", \"kernels\": ";
    write_list(out, module.kernels, [&](const auto& entry) { describe_kernel(out, *entry.second); });
    out << '}';
    return out.str();
}

Slot slot_named(const Kernel& kernel, const std::string& name) {
    const auto found = std::find(kernel.slot_names.begin(), kernel.slot_names.end(), name);
    if (found == kernel.slot_names.end()) throw Fault("PARSE", "no register " + name);
    return static_cast<Slot>(found - kernel.slot_names.begin());
}

uint32_t guarded_lanes(const Instruction& instruction, const uint64_t* registers, uint32_t mask) {
    if (instruction.guard == kNoSlot) return mask;
    uint32_t holding = 0;
    for (int lane = 0; lane < kLanes; ++lane)
        if ((registers[instruction.guard * kLanes + lane] & 1) != (instruction.guard_negated ? 1 : 0))
            holding |= 1u << lane;
    return mask & holding;
}

void run_lanes(const Kernel& kernel, const std::vector<Slot>& slots, uint64_t* const* columns, int inputs,
               size_t n) {
    std::vector<uint64_t> registers(static_cast<size_t>(kernel.slots) * kLanes);
    for (const auto& [slot, value] : kernel.constants)
        std::fill_n(registers.begin() + slot * kLanes, kLanes, value);
    for (size_t start = 0; start < n; start += kLanes) {
        const size_t lanes = std::min<size_t>(kLanes, n - start);
        const uint32_t mask = lanes == kLanes ? ~0u : (1u << lanes) - 1;
        for (int i = 0; i < inputs; ++i)
            std::copy_n(columns[i] + start, lanes, registers.begin() + slots[i] * kLanes);
        for (const Instruction& instruction : kernel.code) {
            if (instruction.opcode == Opcode::kReturn) break;
            if (instruction.opcode != Opcode::kPlain)
                throw Fault("PARSE", "no lane-wise instruction: " + instruction.text);
            const uint32_t active = guarded_lanes(instruction, registers.data(), mask);
            if (active) instruction.plain(instruction, registers.data(), active);
        }
        for (size_t i = static_cast<size_t>(inputs); i < slots.size(); ++i)
            std::copy_n(registers.begin() + slots[i] * kLanes, lanes, columns[i] + start);
    }
}

}  // namespace
}  // namespace ptxsim

const char* ptxsim_inspect(const char* text) {
    using namespace ptxsim;
    try {
        description = describe(*parse_module(text));
        return description.c_str();
    } catch (const std::exception& error) {
        last_error = error.what();
        return nullptr;
    }
}

const char* ptxsim_inspect_forms() {
    using namespace ptxsim;
    std::ostringstream out;
    write_list(out, all_forms(), [&](const Form* form) {
        const std::string pattern = form->text->pattern;
        out << '[' << quoted(pattern.substr(0, pattern.find(' '))) << ", ";
        write_list(out, form->qualifiers, [&](const QualifierSlot& slot) {
            out << '[' << (slot.optional ? "true" : "false");
            for (const std::string& choice : slot.choices) out << ", " << quoted(choice);
            out << ']';
        });
        out << ", ";
        write_list(out, form->operands, [&](const std::vector<std::string>& kinds) {
            write_list(out, kinds, [&](const std::string& kind) { out << quoted(kind); });
        });
        out << ']';
    });
    description = out.str();
    return description.c_str();
}

int ptxsim_inspect_alu(const char* body, const char* const* names, uint64_t* const* columns, int inputs,
                       int count, size_t n) {
    using namespace ptxsim;
    try {
        const auto module = parse_module(".version 9.0\n.target sm_90a\n.visible .entry lanes()\n{\n" +
                                         std::string(body) + "\n}\n");
        const Kernel& kernel = *module->kernels.at("lanes");
        std::vector<Slot> slots;
        for (int i = 0; i < count; ++i) slots.push_back(slot_named(kernel, names[i]));
        run_lanes(kernel, slots, columns, inputs, n);
        return 0;
    } catch (const std::exception& error) {
        last_error = error.what();
        return 1;
    }
}

const char* ptxsim_inspect_fault_kinds() {
    using namespace ptxsim;
    std::ostringstream out;
    write_list(out, kFaultKinds, [&](std::string_view kind) { out << quoted(std::string(kind)); });
    description = out.str();
    return description.c_str();
}

const char* ptxsim_inspect_error() { return ptxsim::last_error.c_str(); }
