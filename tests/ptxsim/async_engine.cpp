#include "async_engine.h"

#include "machine.h"

namespace ptxsim {
namespace {

class NoEngine : public AsyncEngine {
  public:
    Outcome execute(Machine& machine, Warp&, const Instruction&, uint32_t) override {
        machine.fail("UNSUPPORTED", "this instruction belongs to the asynchronous engine");
    }
    void plain_touches(Machine&, Warp&, const Instruction&) override {}
    void lanes_exit(Machine&, Warp&, uint32_t) override {}
    void cta_exits(Machine&, Cta&) override {}
    void cluster_exits(Machine&, Cluster&) override {}
};

}  // namespace

std::unique_ptr<AsyncEngine> make_async_engine() { return std::make_unique<NoEngine>(); }

}  // namespace ptxsim
