#include "decoder.h"

#include <algorithm>
#include <bit>

#include "fault.h"

namespace ptxsim {
namespace {

[[noreturn]] void fail(const std::string& message) { throw Fault("PARSE", message); }

uint64_t low_bits(int bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }

std::string count_of(size_t count, const char* noun) {
    return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

bool is_discarded(const Operand& operand) {
    return operand.kind == Operand::Kind::kName && operand.name == "_";
}

// Whether an operand is written: "x" and "h" only with their qualifier, the carry flag never.
bool is_present(const std::string& kind, const Instruction& instruction) {
    if (kind == "x") return instruction.multicast;
    if (kind == "h") return instruction.cache_hint;
    return kind != "ci" && kind != "co";
}

// Register widths are multiples of 16: an 8-bit type lives in a wider register.
int register_bits(Type type) { return type == Type::kPred ? 1 : 8 * type_bytes(type); }

}  // namespace

int Decoder::type_bits() const { return register_bits(instruction_.type); }

Slot Decoder::predicate(const std::string& name) {
    Operand operand;
    operand.name = name;
    return register_slot(operand, 1, false);
}

// A register of exactly `bits`, or at least so wide.
Slot Decoder::register_slot(const Operand& operand, int bits, bool at_least) {
    if (operand.kind != Operand::Kind::kName || operand.offset != 0) fail("expected a register");
    const Symbol* symbol = builder_.find(operand.name);
    if (symbol == nullptr) fail("unknown register " + operand.name);
    if (symbol->kind != Symbol::Kind::kRegister) fail(operand.name + " is no register");
    const auto slot = static_cast<Slot>(symbol->value);
    const int declared = builder_.slot_bits(slot);
    const bool both_or_neither_predicate = (declared == 1) == (bits == 1);
    if (!both_or_neither_predicate || (at_least ? declared < bits : declared != bits)) {
        const auto describe = [](int width) {
            return width == 1 ? std::string("a predicate") : std::to_string(width) + " bits";
        };
        fail(operand.name + " has " + describe(declared) + " where the instruction takes " + describe(bits) +
             (at_least && bits != 1 ? " or more" : ""));
    }
    return slot;
}

void Decoder::add_output(const Operand& operand, int bits, bool at_least, bool may_discard) {
    if (operand.negated) fail("a destination is negated");
    if (is_discarded(operand)) {
        if (!may_discard) fail("the destination must not be _");
        instruction_.outputs.push_back(kNoSlot);
        return;
    }
    const Slot slot = register_slot(operand, bits, at_least);
    const int declared = builder_.slot_bits(slot);
    if (instruction_.output_bits == 0) instruction_.output_bits = static_cast<uint8_t>(declared);
    instruction_.outputs.push_back(slot);
}

Slot Decoder::float_constant(const Operand& operand, int bits, Type type) {
    if (operand.bytes != 0) {
        if (8 * operand.bytes != bits) fail("a float constant of the wrong width");
        return builder_.constant(operand.value);
    }
    if (type == Type::kF32)
        return builder_.constant(std::bit_cast<uint32_t>(static_cast<float>(operand.decimal)));
    if (type == Type::kF64) return builder_.constant(std::bit_cast<uint64_t>(operand.decimal));
    fail("a decimal fraction where the type is not f32 or f64");
}

Slot Decoder::symbol_address(const Operand& operand, const Symbol& symbol) {
    if (symbol.kind == Symbol::Kind::kDynamicShared) return builder_.dynamic_shared(operand.offset);
    if (symbol.kind == Symbol::Kind::kCallParameter)
        fail("the address of the call parameter " + operand.name + " is not supported");
    return builder_.constant(symbol.value + static_cast<uint64_t>(operand.offset));
}

// A register, constant, special register or the address of a variable.
Slot Decoder::source(const Operand& operand, int bits, bool at_least, Type type) {
    switch (operand.kind) {
        case Operand::Kind::kInteger:
            if (type == Type::kF32 || type == Type::kF64)
                fail("an integer constant where the type is a float");
            return builder_.constant(operand.value & low_bits(bits));
        case Operand::Kind::kFloat:
            return float_constant(operand, bits, type);
        case Operand::Kind::kName:
            break;
        default:
            fail("expected a register or a constant");
    }
    SpecialRegister which;
    if (special_register(operand.name, which)) {
        if (which >= SpecialRegister::kClock) fail("a timer is only read by mov");
        const int special_bits = special_register_bits(which);
        if (special_bits != bits && !(at_least && special_bits > bits && bits != 1))
            fail(operand.name + " has " + std::to_string(special_bits) +
                 " bits where the instruction takes " + std::to_string(bits));
        return builder_.special(which);
    }
    const Symbol* symbol = builder_.find(operand.name);
    if (symbol == nullptr) fail("unknown name " + operand.name);
    if (symbol->kind == Symbol::Kind::kRegister) return register_slot(operand, bits, at_least);
    if (bits != 32 && bits != 64) fail(operand.name + " is an address, of 32 or 64 bits");
    return symbol_address(operand, *symbol);
}

void Decoder::add_input(const Operand& operand, int bits, bool at_least, Type type) {
    instruction_.inputs.push_back(source(operand, bits, at_least, type));
}

void Decoder::decode_vector(const Operand& operand, bool is_destination, int bits, bool at_least,
                            size_t count) {
    std::vector<Operand> elements = operand.parts;
    if (operand.kind != Operand::Kind::kVector) {
        if (count > 1) fail("expected a vector of " + count_of(count, "element"));
        elements = {operand};
    }
    if (count != 0 && elements.size() != count)
        fail("a vector of " + count_of(elements.size(), "element") + " instead of " + std::to_string(count));
    if (elements.empty()) fail("an empty vector");
    for (const Operand& element : elements) {
        if (element.negated) fail("an element of a vector is negated");
        if (is_destination)
            add_output(element, bits, at_least, true);
        else
            add_input(element, bits, at_least, instruction_.type);
    }
}

// [base+offset]; a call's parameter turns the access into one of local memory.
void Decoder::decode_address(const Operand& operand) {
    if (operand.kind != Operand::Kind::kMemory) fail("expected an address in brackets");
    if (operand.parts.size() != 1) fail("an address of " + count_of(operand.parts.size(), "part"));
    const Operand& base = operand.parts[0];
    Address address;
    if (base.kind == Operand::Kind::kInteger) {
        address.base = builder_.constant(base.value);
        instruction_.addresses.push_back(address);
        return;
    }
    if (base.kind != Operand::Kind::kName || base.negated)
        fail("expected a register or a variable in the brackets");
    const Symbol* symbol = builder_.find(base.name);
    if (symbol == nullptr) fail("unknown name " + base.name);
    const bool of_parameter =
        symbol->kind == Symbol::Kind::kParameter || symbol->kind == Symbol::Kind::kCallParameter;
    if (of_parameter && instruction_.space != Space::kParam) fail(base.name + " is in .param space");
    switch (symbol->kind) {
        case Symbol::Kind::kRegister:
            address.base = static_cast<Slot>(symbol->value);
            if (builder_.slot_bits(address.base) < 32) fail(base.name + " is too narrow for an address");
            address.offset = base.offset;
            break;
        case Symbol::Kind::kCallParameter:
            instruction_.space = Space::kLocal;
            address.base = builder_.constant(symbol->value);
            address.offset = base.offset;
            break;
        case Symbol::Kind::kDynamicShared:
            address.base = builder_.dynamic_shared(0);
            address.offset = base.offset;
            break;
        default:
            address.base = builder_.constant(symbol->value);
            address.offset = base.offset;
    }
    instruction_.addresses.push_back(address);
}

// [map, {c0, c1}]: an address, then as many 32-bit coordinates as the tensor has dimensions.
void Decoder::decode_tensor(const Operand& operand) {
    if (operand.kind != Operand::Kind::kMemory || operand.parts.size() != 2)
        fail("expected [tensor map, {coordinates}]");
    Operand map = operand;
    map.parts.pop_back();
    const Space space = instruction_.space;
    instruction_.space = Space::kGeneric;
    decode_address(map);
    instruction_.space = space;
    const Operand& coordinates = operand.parts[1];
    if (coordinates.kind != Operand::Kind::kVector || coordinates.parts.size() != instruction_.count)
        fail("expected " + count_of(instruction_.count, "coordinate"));
    for (const Operand& coordinate : coordinates.parts) add_input(coordinate, 32, false, Type::kB32);
}

// mov d, a; mov {d0, d1}, a; mov d, {a0, a1}.
void Decoder::decode_move(const Operand& operand, bool is_destination) {
    if (operand.kind != Operand::Kind::kVector) {
        if (is_destination)
            add_output(operand, type_bits(), false, false);
        else
            add_input(operand, type_bits(), false, instruction_.type);
        return;
    }
    const Type type = instruction_.type;
    const bool packs = type == Type::kB32 || type == Type::kB64;
    const size_t count = operand.parts.size();
    if (!packs || (count != 2 && count != 4) || type_bits() / static_cast<int>(count) < 16)
        fail("mov packs 2 or 4 registers of 16 or 32 bits into .b32 or .b64");
    decode_vector(operand, is_destination, type_bits() / static_cast<int>(count), false, count);
}

void Decoder::decode_operand(const std::string& kind, const Operand& operand) {
    const int bits = type_bits();
    const Type type = instruction_.type, second = instruction_.source_type;
    const int second_bits = register_bits(second);
    const bool is_pair = operand.kind == Operand::Kind::kPair;
    if (operand.negated && kind != "q") fail("this operand must not be negated");
    if (kind.find('|') != std::string::npos) {
        if (!is_pair) fail("expected two destinations a|b");
        const std::string first = kind.substr(0, kind.find('|'));
        const int first_bits = first == "p" ? 1 : first == "d" ? bits : 32;
        add_output(operand.parts[0], first_bits, false, first == "p" || first == "d32_");
        add_output(operand.parts[1], 1, false, first == "p");
        return;
    }
    if (is_pair) fail("two destinations where the instruction has one");
    if (kind == "d") {
        add_output(operand, bits, false, false);
    } else if (kind == "d+") {
        add_output(operand, bits, true, false);
    } else if (kind == "dw") {
        add_output(operand, 2 * bits, false, false);
    } else if (kind == "d32") {
        add_output(operand, 32, false, false);
    } else if (kind == "d_") {
        add_output(operand, 64, false, true);
    } else if (kind == "p") {
        add_output(operand, 1, false, false);
    } else if (kind == "ds") {
        decode_vector(operand, true, bits, true, instruction_.vector);
    } else if (kind == "as") {
        decode_vector(operand, false, bits, true, instruction_.vector);
    } else if (kind == "dV") {
        if (operand.kind != Operand::Kind::kVector) fail("expected a vector of registers");
        decode_vector(operand, true, 32, false, 0);
    } else if (kind == "aV") {
        if (operand.kind != Operand::Kind::kVector) fail("expected a vector of registers");
        decode_vector(operand, false, 32, false, 0);
        size_t index = 0;
        while (index < 2 && instruction_.input_counts[index] != 0) ++index;
        instruction_.input_counts[index] = static_cast<uint8_t>(operand.parts.size());
    } else if (kind == "D" || kind == "A") {
        decode_move(operand, kind == "D");
    } else if (kind == "a") {
        add_input(operand, bits, false, type);
    } else if (kind == "w") {
        add_input(operand, 2 * bits, false, type);
    } else if (kind == "s") {
        add_input(operand, second_bits, false, second);
    } else if (kind == "s+") {
        add_input(operand, second_bits, true, second);
    } else if (kind == "u") {
        add_input(operand, 32, false, Type::kB32);
    } else if (kind == "f") {
        add_input(operand, 32, false, Type::kF32);
    } else if (kind == "b64" || kind == "h") {
        add_input(operand, 64, false, Type::kB64);
    } else if (kind == "x") {
        add_input(operand, 16, false, Type::kB16);
    } else if (kind == "q") {
        add_input(operand, 1, false, Type::kPred);
        instruction_.negated = operand.negated;
    } else if (kind == "k") {
        instruction_.member_mask = source(operand, 32, false, Type::kB32);
    } else if (kind == "i") {
        if (operand.kind != Operand::Kind::kInteger) fail("expected an integer constant");
        instruction_.immediates.push_back(static_cast<int64_t>(operand.value));
    } else if (kind == "m") {
        decode_address(operand);
    } else if (kind == "t") {
        decode_tensor(operand);
    } else if (kind == "l") {
        if (operand.kind != Operand::Kind::kName) fail("expected a label");
        labels_.push_back(operand.name);
    } else {
        throw Fault("INTERNAL", "the tables name the operand kind " + kind);
    }
}

// False if the number of operands differs.
bool Decoder::decode_operands(const std::vector<std::string>& kinds, const std::vector<Operand>& operands) {
    size_t expected = 0;
    for (const std::string& kind : kinds) expected += is_present(kind, instruction_);
    if (expected != operands.size()) return false;
    for (const std::string& kind : kinds) {
        if (kind == "ci") instruction_.inputs.push_back(builder_.carry());
        if (kind == "co") instruction_.outputs.push_back(builder_.carry());
        if (!is_present(kind, instruction_)) continue;
        decode_operand(kind, operands[decoded_operands_]);
        ++decoded_operands_;
    }
    return true;
}

// The clock and the timer change while a kernel runs: reading one is an instruction of its own.
bool Decoder::decode_timer(const std::string& written, const std::vector<Operand>& operands) {
    SpecialRegister which;
    if (written.rfind("mov.", 0) != 0 || operands.size() != 2 || operands[1].kind != Operand::Kind::kName ||
        !special_register(operands[1].name, which) || which < SpecialRegister::kClock)
        return false;
    if (type_bits() != special_register_bits(which)) fail(operands[1].name + " has another width");
    instruction_.opcode = Opcode::kReadTimer;
    instruction_.special = which;
    add_output(operands[0], type_bits(), false, false);
    return true;
}

void Decoder::decode(const std::string& written, const std::vector<Operand>& operands,
                     const std::string& guard, bool guard_negated, int line, const std::string& text) {
    instruction_ = {};
    instruction_.line = line;
    instruction_.text = text;
    labels_.clear();
    if (!guard.empty()) {
        instruction_.guard = predicate(guard);
        instruction_.guard_negated = guard_negated;
    }
    const Form& form = match_form(written, instruction_);
    const Instruction matched = instruction_;

    bool decoded = decode_timer(written, operands);
    std::string problem;  // of the alternative that came furthest
    size_t furthest = 0;
    for (size_t i = 0; i < form.operands.size() && !decoded; ++i) {
        instruction_ = matched;
        decoded_operands_ = 0;
        try {
            decoded = decode_operands(form.operands[i], operands);
        } catch (const Fault& fault) {
            if (fault.kind != "PARSE") throw;
            if (problem.empty() || decoded_operands_ > furthest) problem = fault.detail;
            furthest = std::max(furthest, decoded_operands_);
        }
    }
    if (!decoded)
        fail(problem.empty() ? "wrong number of operands: " + std::to_string(operands.size()) : problem);

    if (form.text->check != nullptr)
        if (const char* error = form.text->check(instruction_)) fail(error);
    if (instruction_.opcode == Opcode::kPlain) {
        instruction_.plain = form.text->select(instruction_);
        if (instruction_.plain == nullptr)
            throw Fault("INTERNAL", "the tables admit an instruction that the ALU does not have: " + text);
    }
    for (const std::string& label : labels_) builder_.refer(builder_.kernel().code.size(), label);
    builder_.kernel().code.push_back(std::move(instruction_));
}

}  // namespace ptxsim
