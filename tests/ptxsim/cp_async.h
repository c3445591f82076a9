// cp.async: copies from global to shared memory that a thread starts now and waits for later.
#pragma once
#include <array>

#include "machine.h"

namespace ptxsim {

// What one cp.async instruction of a warp copies.
struct CopyBatch : AsyncOp {
    struct Piece {
        uint32_t offset = 0;  // in the CTA's shared memory
        const uint8_t* source = nullptr;
        uint32_t bytes = 0, filled = 0;  // copied, and zeros after them
    };
    void complete(Machine& machine) override;
    bool touches(const Cta& cta) const override { return issuer->cta == &cta; }

    uint32_t lanes = 0, awaited = 0;  // who copies, and who has waited
    Tick tick = 0;
    std::array<Piece, kLanes> pieces;
    std::array<uint32_t, kLanes> group{};
};

}  // namespace ptxsim
