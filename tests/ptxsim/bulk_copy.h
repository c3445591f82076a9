// Bulk copies in flight: what the plain ones (cp.async.bulk) and those through tensor maps have in common.
#pragma once

#include "engine.h"

namespace ptxsim {

// A load into shared memory, of one CTA or (multicast) of several at the same address; each copy completes on
// the mbarrier of its own CTA.
struct LoadOp : AsyncOp {
    struct Destination {
        Cta* cta;
        uint32_t offset, barrier;
        Tick tick;
    };
    std::vector<Destination> destinations;
    uint32_t bytes = 0;

    void complete(Machine& machine) override;
    bool touches(const Cta& cta) const override;
    // Brings the source's bytes to the shared memory at `shared`, from address `offset` on.
    virtual void copy(Machine& machine, uint8_t* shared, uint32_t offset) const = 0;
};

// A store from shared memory. It reads its source when it completes or when someone waits for the read,
// whichever comes first.
struct BulkOp : AsyncOp {
    Cta* cta = nullptr;
    uint32_t offset = 0, bytes = 0;
    Tick tick = 0;
    bool read_done = false;
    bool awaited = false;  // its lane has waited at least for the read
    std::vector<uint8_t> captured;

    void read_source();
    void complete(Machine& machine) override;
    bool touches(const Cta&) const override {
        return false;
    }  // its CTA may not exit before the read: another rule
    virtual void write(Machine& machine) const = 0;
};

// The parts of a load that do not depend on how the source is addressed: checks destination and mbarrier of
// the lane's instruction, marks the bytes as in flight and fills `op`. `barrier_address` is the index of the
// mbarrier's address.
void prepare_load(Machine& machine, Warp& warp, const Instruction& instruction, int lane, uint32_t bytes,
                  uint32_t alignment, uint16_t cta_mask, LoadOp& op, const Clock& known);
// The access by which the load's source is read: as the actor that completes on its (first) mbarrier.
Access load_access(const LoadOp& op);

// Checks and records that a store reads its source.
void prepare_store(Machine& machine, Warp& warp, const Instruction& instruction, int lane,
                   const Address& source, uint32_t bytes, uint32_t alignment, BulkOp& op, const Clock& known);
Access store_access(const Warp& warp, int lane, const BulkOp& op);
void submit_store(Machine& machine, Warp& warp, const Instruction& instruction, int lane,
                  std::shared_ptr<BulkOp> op);

}  // namespace ptxsim
