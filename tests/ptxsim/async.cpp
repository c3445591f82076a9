#include "async.h"

#include <algorithm>

#include "machine.h"

namespace ptxsim {

void AsyncQueue::finish(Machine& machine, AsyncOp& op) {
    if (op.done) return;
    op.done = true;
    Warp* const warp = machine.current_warp;
    const Instruction* const instruction = machine.current;
    machine.current_warp = op.issuer;
    machine.current = op.instruction;
    op.complete(machine);
    machine.current_warp = warp;
    machine.current = instruction;
}

bool AsyncQueue::advance(Machine& machine, int64_t round) {
    bool any = false;
    for (size_t i = 0; i < ops_.size(); ++i) {  // completing one may add others
        const std::shared_ptr<AsyncOp> op = ops_[i];
        if (op->done || op->due > round) continue;
        finish(machine, *op);
        any = true;
    }
    std::erase_if(ops_, [](const std::shared_ptr<AsyncOp>& op) { return op->done; });
    return any;
}

int64_t AsyncQueue::earliest() const {
    int64_t first = INT64_MAX;
    for (const auto& op : ops_) {
        if (!op->done) first = std::min(first, op->due);
    }
    return first;
}

const AsyncOp* AsyncQueue::touching(const Cta& cta) const {
    for (const auto& op : ops_) {
        if (!op->done && op->touches(cta)) return op.get();
    }
    return nullptr;
}

}  // namespace ptxsim
