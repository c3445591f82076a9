// Tensor-core instructions and the matrix loads that feed them.
#include "opcodes.h"

namespace ptxsim {
namespace {

int bits_of(Type type) { return 8 * type_bytes(type); }

// Registers per lane that hold rows x columns elements, spread over `threads` lanes.
int registers_for(int rows, int columns, Type type, int threads) {
    return rows * columns * bits_of(type) / 32 / threads;
}

const char* complete_mma(Instruction& instruction) {
    const auto [m, n, k] = instruction.shape;
    instruction.aligned = true;
    instruction.a_type = instruction.source_type;
    const bool fits =
        static_cast<int>(instruction.outputs.size()) == registers_for(m, n, instruction.type, kLanes) &&
        instruction.input_counts[0] == registers_for(m, k, instruction.a_type, kLanes) &&
        instruction.input_counts[1] == registers_for(n, k, instruction.b_type, kLanes) &&
        instruction.input_counts[2] == registers_for(m, n, instruction.c_type, kLanes);
    return fits ? nullptr : "a matrix has the wrong number of registers for this shape";
}

const char* complete_wgmma(Instruction& instruction) {
    const auto [m, n, k] = instruction.shape;
    constexpr int kWarpgroup = 4 * kLanes;
    instruction.aligned = true;
    instruction.a_type = instruction.source_type;
    instruction.a_in_registers = instruction.input_counts[0] != 0;
    if (static_cast<int>(instruction.outputs.size()) != registers_for(m, n, instruction.type, kWarpgroup))
        return "D has the wrong number of registers for this shape";
    if (instruction.a_in_registers &&
        instruction.input_counts[0] != registers_for(m, k, instruction.a_type, kWarpgroup))
        return "A has the wrong number of registers for this shape";
    for (size_t i = 0; i < 2; ++i)
        if (instruction.immediates[i] != 1 && instruction.immediates[i] != -1)
            return "a scale must be 1 or -1";
    for (size_t i = 2; i < instruction.immediates.size(); ++i)
        if (instruction.immediates[i] != 0 && instruction.immediates[i] != 1)
            return "a transposition must be 0 or 1";
    return nullptr;
}

const char* check_loaded_count(Instruction& instruction) {
    instruction.aligned = true;
    return instruction.outputs.size() == instruction.count ? nullptr
                                                           : "wrong number of registers for this count";
}

const char* check_stored_count(Instruction& instruction) {
    instruction.aligned = true;
    return instruction.inputs.size() == instruction.count ? nullptr
                                                          : "wrong number of registers for this count";
}

}  // namespace

std::vector<FormText> matrix_forms() {
    // A by descriptor or in registers; the 16-bit types state whether A (where in memory) and B are
    // transposed.
    constexpr const char* kWgmma16 = "dV b64 b64 q i i i i / dV aV b64 q i i i";
    constexpr const char* kWgmma8 = "dV b64 b64 q i i / dV aV b64 q i i";
    return {
        {"ldmatrix .sync .aligned .m8n8 .x1|.x2|.x4 [.trans] [.shared|.shared::cta] .b16", "dV m",
         Opcode::kLoadMatrix, nullptr, check_loaded_count},
        {"stmatrix .sync .aligned .m8n8 .x1|.x2|.x4 [.trans] [.shared|.shared::cta] .b16", "m aV",
         Opcode::kStoreMatrix, nullptr, check_stored_count},
        {"mma .sync .aligned .m16n8k8|.m16n8k16 .row .col .f32 .bf16 .bf16 .f32", "dV aV aV aV", Opcode::kMma,
         nullptr, complete_mma},
        {"mma .sync .aligned .m16n8k8|.m16n8k16 .row .col .f32 .f16 .f16 .f32", "dV aV aV aV", Opcode::kMma,
         nullptr, complete_mma},
        {"mma .sync .aligned .m16n8k32 .row .col .f32 .e4m3|.e5m2 .e4m3|.e5m2 .f32", "dV aV aV aV",
         Opcode::kMma, nullptr, complete_mma},
        {"wgmma .fence .sync .aligned", "", Opcode::kWgmmaFence},
        {"wgmma .commit_group .sync .aligned", "", Opcode::kWgmmaCommit},
        {"wgmma .wait_group .sync .aligned", "i", Opcode::kWgmmaWait},
        {"wgmma .mma_async .sync .aligned .m64nNk16 .f32 .bf16 .bf16", kWgmma16, Opcode::kWgmma, nullptr,
         complete_wgmma},
        {"wgmma .mma_async .sync .aligned .m64nNk16 .f32 .f16 .f16", kWgmma16, Opcode::kWgmma, nullptr,
         complete_wgmma},
        {"wgmma .mma_async .sync .aligned .m64nNk32 .f32 .e4m3|.e5m2 .e4m3|.e5m2", kWgmma8, Opcode::kWgmma,
         nullptr, complete_wgmma},
    };
}

}  // namespace ptxsim
