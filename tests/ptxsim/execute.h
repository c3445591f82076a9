// The handlers of instructions that are not lane-wise arithmetic, one file for each group.
#pragma once
#include "machine.h"

namespace ptxsim {

// loads_stores.cpp
Outcome run_load(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
Outcome run_store(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
// atomics.cpp
Outcome run_atomic(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
// sync.cpp
Outcome run_fence(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
// cp_async.cpp
Outcome run_copy(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
Outcome run_copy_commit(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
Outcome run_copy_wait(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
void check_copies_at_exit(Machine& machine, const CopyBatch& batch, uint32_t lanes);
// barriers.cpp
Outcome run_barrier(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
void check_barriers_at_exit(Machine& machine, Cta& cta);
// collectives.cpp: shuffles, votes, matches, reductions, election, warp synchronisation
Outcome run_collective(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask);
// matrices.cpp
Outcome run_load_matrix(Machine& machine, Warp& warp, const Instruction& instruction);
Outcome run_store_matrix(Machine& machine, Warp& warp, const Instruction& instruction);
// mma.cpp
Outcome run_mma(Machine& machine, Warp& warp, const Instruction& instruction);

}  // namespace ptxsim
