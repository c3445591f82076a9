// One written instruction to its decoded form.
#pragma once
#include <string>
#include <vector>

#include "kernel_builder.h"
#include "opcodes.h"
#include "operand.h"

namespace ptxsim {

class Decoder {
  public:
    explicit Decoder(KernelBuilder& builder) : builder_(builder) {}

    // Appends the instruction "written operands" to the kernel. `guard` is "" or the guard's register. Throws
    // Fault("PARSE") without line or text, which the caller adds.
    void decode(const std::string& written, const std::vector<Operand>& operands, const std::string& guard,
                bool guard_negated, int line, const std::string& text);

    // A predicate register by name, for guards.
    Slot predicate(const std::string& name);

  private:
    bool decode_operands(const std::vector<std::string>& kinds, const std::vector<Operand>& operands);
    void decode_operand(const std::string& kind, const Operand& operand);
    void decode_move(const Operand& operand, bool is_destination);
    void decode_vector(const Operand& operand, bool is_destination, int bits, bool at_least, size_t count);
    void decode_address(const Operand& operand);
    void decode_tensor(const Operand& operand);
    void add_output(const Operand& operand, int bits, bool at_least, bool may_discard);
    void add_input(const Operand& operand, int bits, bool at_least, Type type);
    Slot register_slot(const Operand& operand, int bits, bool at_least);
    Slot source(const Operand& operand, int bits, bool at_least, Type type);
    Slot float_constant(const Operand& operand, int bits, Type type);
    Slot symbol_address(const Operand& operand, const Symbol& symbol);
    bool decode_timer(const std::string& written, const std::vector<Operand>& operands);
    int type_bits() const;

    KernelBuilder& builder_;
    Instruction instruction_;
    std::vector<std::string> labels_;
    size_t decoded_operands_ = 0;  // of the alternative being tried
};

}  // namespace ptxsim
