// The machine's side of the asynchronous engine: mbarriers, bulk and tensor copies, wgmma, cluster barriers
// and proxy fences are executed through this interface.
#pragma once
#include <cstdint>
#include <memory>

#include "program.h"

namespace ptxsim {

class Machine;
struct Warp;
struct Cta;
struct Cluster;
enum class Outcome : uint8_t;

class AsyncEngine {
  public:
    virtual ~AsyncEngine() = default;
    virtual Outcome execute(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) = 0;
    // An instruction other than wgmma is about to run while Warp::busy_registers is not zero.
    virtual void plain_touches(Machine& machine, Warp& warp, const Instruction& instruction) = 0;
    // A lane is about to access shared memory of another CTA.
    virtual void remote_access(Warp& warp, int lane, Cta& target) = 0;
    // Throw Fault if something is left undone.
    virtual void lanes_exit(Machine& machine, Warp& warp, uint32_t mask) = 0;
    virtual void cta_exits(Machine& machine, Cta& cta) = 0;
    virtual void cluster_exits(Machine& machine, Cluster& cluster) = 0;
};

std::unique_ptr<AsyncEngine> make_async_engine();

}  // namespace ptxsim
