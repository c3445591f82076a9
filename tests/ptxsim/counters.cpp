#include "counters.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <map>
#include <sstream>

namespace ptxsim {
namespace {

constexpr const char* kClassNames[kInstructionClasses] = {
    "float", "half",  "special", "integer",    "convert", "move",   "branch", "global", "shared",
    "local", "param", "atomic",  "collective", "barrier", "matrix", "async",  "other"};

InstructionClass classify_plain(const Instruction& instruction) {
    const std::string opcode = opcode_name(instruction.text);
    if (opcode == "mov" || opcode == "selp" || opcode == "cvta" || opcode == "isspacep") {
        return InstructionClass::kMove;
    }
    if (opcode == "cvt") return InstructionClass::kConvert;
    static const std::map<std::string, int> kSpecial = {{"rcp", 0}, {"sqrt", 0}, {"rsqrt", 0}, {"ex2", 0},
                                                        {"lg2", 0}, {"sin", 0},  {"cos", 0},   {"tanh", 0}};
    if (kSpecial.count(opcode)) return InstructionClass::kSpecial;
    switch (instruction.type) {
        case Type::kF32:
        case Type::kF64:
            return opcode == "div" ? InstructionClass::kSpecial : InstructionClass::kFloat;
        case Type::kF16:
        case Type::kF16x2:
        case Type::kBF16:
        case Type::kBF16x2:
            return InstructionClass::kHalf;
        default:
            return InstructionClass::kInteger;
    }
}

void write_requests(std::ostringstream& out, const char* name, const RequestCounters& counters) {
    out << ", \"" << name << "\": {\"requests\": " << counters.requests
        << ", \"sectors\": " << counters.sectors << ", \"bytes\": " << counters.bytes << "}";
}

}  // namespace

const char* instruction_class_name(InstructionClass value) { return kClassNames[static_cast<int>(value)]; }

std::string opcode_name(const std::string& text) {
    size_t start = 0;
    if (!text.empty() && text[0] == '@') {
        while (start < text.size() && !std::isspace(static_cast<unsigned char>(text[start]))) ++start;
        while (start < text.size() && std::isspace(static_cast<unsigned char>(text[start]))) ++start;
    }
    size_t end = start;
    while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_'))
        ++end;
    return text.substr(start, end - start);
}

InstructionClass classify(const Instruction& instruction) {
    switch (instruction.opcode) {
        case Opcode::kPlain:
            return classify_plain(instruction);
        case Opcode::kLoad:
        case Opcode::kStore:
            switch (instruction.space) {
                case Space::kShared:
                case Space::kSharedCluster:
                    return InstructionClass::kShared;
                case Space::kLocal:
                    return InstructionClass::kLocal;
                case Space::kParam:
                    return InstructionClass::kParameter;
                default:
                    return InstructionClass::kGlobal;
            }
        case Opcode::kAtomic:
            return InstructionClass::kAtomic;
        case Opcode::kBranch:
        case Opcode::kBranchIndexed:
        case Opcode::kReturn:
            return InstructionClass::kBranch;
        case Opcode::kShuffle:
        case Opcode::kVote:
        case Opcode::kMatch:
        case Opcode::kRedux:
        case Opcode::kActiveMask:
        case Opcode::kElect:
        case Opcode::kWarpSync:
            return InstructionClass::kCollective;
        case Opcode::kBarrier:
        case Opcode::kBarrierArrive:
        case Opcode::kBarrierReduce:
        case Opcode::kClusterArrive:
        case Opcode::kClusterWait:
        case Opcode::kFence:
            return InstructionClass::kBarrier;
        case Opcode::kMma:
        case Opcode::kLoadMatrix:
        case Opcode::kStoreMatrix:
        case Opcode::kWgmma:
        case Opcode::kWgmmaFence:
        case Opcode::kWgmmaCommit:
        case Opcode::kWgmmaWait:
            return InstructionClass::kMatrix;
        case Opcode::kNop:
        case Opcode::kTrap:
        case Opcode::kAssertFail:
        case Opcode::kSetMaxNReg:
        case Opcode::kReadTimer:
        case Opcode::kMapa:
        case Opcode::kGetCtaRank:
        case Opcode::kGridDepLaunch:
        case Opcode::kGridDepWait:
            return InstructionClass::kOther;
        default:
            return InstructionClass::kAsync;
    }
}

uint64_t Counters::total_warp_instructions() const {
    uint64_t sum = 0;
    for (uint64_t count : warp_instructions) sum += count;
    return sum;
}

uint64_t Counters::total_thread_instructions() const {
    uint64_t sum = 0;
    for (uint64_t count : thread_instructions) sum += count;
    return sum;
}

std::string Counters::json(const Kernel& code) const {
    std::array<uint64_t, kInstructionClasses> warp{}, thread{};
    for (size_t i = 0; i < warp_instructions.size() && i < code.code.size(); ++i) {
        const auto group = static_cast<size_t>(classify(code.code[i]));
        warp[group] += warp_instructions[i];
        thread[group] += thread_instructions[i];
    }
    std::ostringstream out;
    out << "{\"kernel\": \"" << kernel << "\", \"ctas\": " << ctas << ", \"threads\": " << threads
        << ", \"shared_bytes\": " << shared_bytes << ", \"instructions\": " << total_thread_instructions()
        << ", \"warp_instructions\": " << total_warp_instructions();
    for (bool by_warp : {false, true}) {
        out << (by_warp ? ", \"warp_instructions_by_class\": {" : ", \"instructions_by_class\": {");
        const char* separator = "";
        for (int i = 0; i < kInstructionClasses; ++i) {
            if (!warp[i]) continue;
            out << separator << "\"" << kClassNames[i] << "\": " << (by_warp ? warp[i] : thread[i]);
            separator = ", ";
        }
        out << "}";
    }
    write_requests(out, "global_load", global_load);
    write_requests(out, "global_store", global_store);
    write_requests(out, "global_atomic", global_atomic);
    write_requests(out, "local", local);
    out << ", \"shared_load\": {\"requests\": " << shared_load_requests
        << ", \"wavefronts\": " << shared_load_wavefronts << ", \"ideal\": " << shared_load_ideal
        << ", \"bytes\": " << shared_load_bytes
        << "}, \"shared_store\": {\"requests\": " << shared_store_requests
        << ", \"wavefronts\": " << shared_store_wavefronts << ", \"ideal\": " << shared_store_ideal
        << ", \"bytes\": " << shared_store_bytes << "}, \"copied_bytes\": " << copied_bytes
        << ", \"bulk_load_bytes\": " << bulk_load_bytes << ", \"bulk_store_bytes\": " << bulk_store_bytes
        << ", \"multiply_adds\": " << multiply_adds << "}";
    return out.str();
}

void count_global(RequestCounters& counters, const uint64_t* addresses, uint32_t mask, uint32_t bytes) {
    std::array<uint64_t, 4 * kLanes> sectors;  // an access of 32 bytes that is not aligned would be a fault
    size_t count = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const uint64_t address = addresses[std::countr_zero(rest)];
        for (uint64_t sector = address >> 5; sector <= (address + bytes - 1) >> 5; ++sector) {
            if (!count || sectors[count - 1] != sector) sectors[count++] = sector;
        }
    }
    if (!std::is_sorted(sectors.begin(), sectors.begin() + count)) {
        std::sort(sectors.begin(), sectors.begin() + count);
    }
    count = std::unique(sectors.begin(), sectors.begin() + count) - sectors.begin();
    ++counters.requests;
    counters.sectors += count;
    counters.bytes += static_cast<uint64_t>(std::popcount(mask)) * bytes;
}

// Accesses of 8 bytes are served by half warps, of 16 bytes by quarter warps; within one, lanes that read the
// same word share it, and different words of one bank take turns.
void count_shared(Counters& counters, bool store, const uint64_t* addresses, uint32_t mask, uint32_t bytes) {
    const int group = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
    uint64_t wavefronts = 0, ideal = 0;
    for (int first = 0; first < kLanes; first += group) {
        std::array<uint64_t, 4 * kLanes> words;
        size_t count = 0;
        for (int lane = first; lane < first + group; ++lane) {
            if (!(mask >> lane & 1)) continue;
            for (uint64_t word = addresses[lane] >> 2; word <= (addresses[lane] + bytes - 1) >> 2; ++word) {
                if (!count || words[count - 1] != word) words[count++] = word;
            }
        }
        if (!count) continue;
        if (!std::is_sorted(words.begin(), words.begin() + count)) {
            std::sort(words.begin(), words.begin() + count);
        }
        count = std::unique(words.begin(), words.begin() + count) - words.begin();
        std::array<uint8_t, 32> banks{};
        uint8_t most = 0;
        for (size_t i = 0; i < count; ++i) most = std::max(most, ++banks[words[i] & 31]);
        wavefronts += most;
        ideal += (count + 31) / 32;
    }
    const uint64_t total = static_cast<uint64_t>(std::popcount(mask)) * bytes;
    (store ? counters.shared_store_wavefronts : counters.shared_load_wavefronts) += wavefronts;
    (store ? counters.shared_store_ideal : counters.shared_load_ideal) += ideal;
    (store ? counters.shared_store_bytes : counters.shared_load_bytes) += total;
    (store ? counters.shared_store_requests : counters.shared_load_requests) += 1;
}

}  // namespace ptxsim
