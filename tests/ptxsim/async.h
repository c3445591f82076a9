// What happens beside the warps' own instructions: operations that complete later, and lanes that wait.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace ptxsim {

class Machine;
struct Warp;
struct Cta;

// An operation in flight. The machine completes it at a round of its own choice, or earlier if something
// waits for it.
struct AsyncOp {
    virtual ~AsyncOp() = default;
    virtual void complete(Machine& machine) = 0;
    // True if the operation reads or writes the CTA's shared memory.
    virtual bool touches(const Cta& cta) const = 0;

    Warp* issuer = nullptr;
    const Instruction* instruction = nullptr;
    int64_t due = 0;  // round
    bool done = false;
};

// Why a lane is blocked.
struct Blocker {
    virtual ~Blocker() = default;
    virtual bool ready(Machine& machine, Warp& warp, int lane) = 0;
    // Writes results and joins clocks; the machine then moves the lane to the next instruction.
    virtual void resume(Machine& machine, Warp& warp, int lane) = 0;
    virtual std::string describe(const Machine& machine) const = 0;
};

class AsyncQueue {
  public:
    void add(std::shared_ptr<AsyncOp> op) { ops_.push_back(std::move(op)); }
    // Completes what is due at `round`; true if anything was.
    bool advance(Machine& machine, int64_t round);
    // Completes one operation now, if it is not done.
    void finish(Machine& machine, AsyncOp& op);
    // The earliest round at which something is due; INT64_MAX if nothing is in flight.
    int64_t earliest() const;
    const AsyncOp* touching(const Cta& cta) const;
    void clear() { ops_.clear(); }

  private:
    std::vector<std::shared_ptr<AsyncOp>> ops_;
};

}  // namespace ptxsim
