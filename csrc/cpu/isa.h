// Which instruction set the CPU kernels run on: one of four tiers, chosen once when the library loads.
#pragma once
#include <string>

namespace dse::cpu {

// The code paths that are compiled. The public tiers are generic, avx2, avx512 and avx512_bf16; VBMI is
// independent of BF16 (Ice Lake has only the former, Cooper Lake only the latter), so the two upper tiers
// exist with and without it.
enum class Isa : int { kGeneric, kAvx2, kAvx512, kAvx512Vbmi, kAvx512Bf16, kAvx512Bf16Vbmi };
inline constexpr int kIsaCount = 6;

// The best code path of this host, whatever the environment says.
Isa host_isa();

// The code path for a capability name: generic, avx2, avx512, avx512_bf16, or one of the last two with
// "-novbmi" appended. Throws std::invalid_argument for an unknown name and for one above the host's.
Isa parse_capability(const std::string& name);

// The name parse_capability() takes back to `isa` on this host.
std::string capability_name(Isa isa);

// The code path in use: from DSE_CPU_CAPABILITY if that is set, else host_isa(). Throws on first use if
// the variable cannot be honoured.
Isa current_isa();

// Replaces the code path in use, for tests and benchmarks that compare tiers in one process.
void set_current_isa(Isa isa);

}  // namespace dse::cpu
