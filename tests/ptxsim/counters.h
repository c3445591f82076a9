// What a launch did, counted: instructions by class, global requests and sectors, shared wavefronts, bytes.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "program.h"

namespace ptxsim {

enum class InstructionClass : uint8_t {
    kFloat,    // f32 and f64 add, mul, fma, compare
    kHalf,     // f16 and bf16 arithmetic
    kSpecial,  // reciprocal, square root, exponential: the special function unit, and divisions
    kInteger,  // integer and logic
    kConvert,  // between types
    kMove,     // mov, selp
    kBranch,   // and ret
    kGlobal,   // loads and stores of each space
    kShared,
    kLocal,
    kParameter,
    kAtomic,
    kCollective,  // shuffles, votes, warp synchronisation
    kBarrier,
    kMatrix,  // mma, wgmma, ldmatrix, stmatrix
    kAsync,   // cp.async, bulk and tensor copies, mbarriers
    kOther,
};
inline constexpr int kInstructionClasses = 17;
const char* instruction_class_name(InstructionClass value);
InstructionClass classify(const Instruction& instruction);
// The opcode of the text, without guard and qualifiers: "add" of "@%p1 add.f32 ...".
std::string opcode_name(const std::string& text);

// Requests of one kind of memory operation. A request is one instruction of one warp; a sector is 32 bytes.
struct RequestCounters {
    uint64_t requests = 0, sectors = 0, bytes = 0;
};

struct Counters {
    std::string kernel;
    uint64_t ctas = 0, threads = 0;
    uint64_t shared_bytes = 0;                  // of a CTA, static and dynamic
    std::vector<uint64_t> warp_instructions;    // per instruction of the kernel
    std::vector<uint64_t> thread_instructions;  // the same, by active lanes
    RequestCounters global_load, global_store, global_atomic;
    RequestCounters local;  // bytes alone say whether the kernel spills
    // A wavefront is what shared memory serves at once: 32 banks of 4 bytes. `ideal` would be enough without
    // conflicts.
    uint64_t shared_load_wavefronts = 0, shared_load_ideal = 0, shared_store_wavefronts = 0,
             shared_store_ideal = 0;
    uint64_t shared_load_bytes = 0, shared_store_bytes = 0, shared_load_requests = 0,
             shared_store_requests = 0;
    uint64_t copied_bytes = 0;                           // by cp.async
    uint64_t bulk_load_bytes = 0, bulk_store_bytes = 0;  // by bulk and tensor copies
    uint64_t multiply_adds = 0;                          // of tensor cores

    uint64_t total_warp_instructions() const;
    uint64_t total_thread_instructions() const;
    // One JSON object; the classes need the kernel's code.
    std::string json(const Kernel& kernel) const;
};

void count_global(RequestCounters& counters, const uint64_t* addresses, uint32_t mask, uint32_t bytes);
void count_shared(Counters& counters, bool store, const uint64_t* addresses, uint32_t mask, uint32_t bytes);

}  // namespace ptxsim
