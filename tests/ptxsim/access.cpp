// One lane's access of memory: address space, bounds, permission, initialisation and races.
#include <cstring>

#include "execute.h"

namespace ptxsim {

Space Machine::resolve(Space space, uint64_t& address) {
    if (space != Space::kGeneric) return space;
    const uint64_t window = address & kWindowMask;
    if (window == kSharedWindow) {
        address = static_cast<uint32_t>(address);
        return Space::kSharedCluster;
    }
    if (window == kLocalWindow) {
        address = static_cast<uint32_t>(address);
        return Space::kLocal;
    }
    if (window == kParamWindow) {
        address = static_cast<uint32_t>(address);
        return Space::kParam;
    }
    return Space::kGlobal;
}

View Machine::view(const Warp& warp, int lane) const {
    View view;
    view.known = &warp.known;
    view.more = warp.more_lanes >> lane & 1 ? warp.more[lane].get() : nullptr;
    view.self = warp.actor;
    view.lane = static_cast<uint8_t>(lane);
    view.floor = warp.cta->launch->floor;
    view.launch = warp.cta->launch->index;
    view.actors = &actors;
    return view;
}

// The access with the line of the instruction that makes it.
Access Machine::stamped(Access access) const {
    access.line = current ? current->line : 0;
    return access;
}

// ---- shared memory

void Machine::check_shared_bounds(const Cta& cta, uint64_t offset, uint64_t bytes) const {
    if (offset >= kSharedReserved && offset + bytes <= cta.shared_end) return;
    const uint32_t size = cta.shared_end - kSharedReserved;
    if (offset < kSharedReserved) {
        fail("SHARED_OOB", format("%llu bytes at shared address %llu, below the first variable",
                                  (unsigned long long)bytes, (unsigned long long)offset));
    }
    fail("SHARED_OOB",
         format("%llu bytes at offset %llu of the CTA's %u bytes of shared memory", (unsigned long long)bytes,
                (unsigned long long)(offset - kSharedReserved), size));
}

Cta& Machine::shared_target(Warp& warp, Space space, uint64_t address, uint32_t bytes, uint32_t& offset) {
    const uint64_t rank = address >> 24;
    Cta* target = warp.cta;
    if (rank) {
        const auto& ctas = warp.cta->cluster->ctas;
        if (rank > ctas.size()) {
            fail("SHARED_OOB", format("shared::cluster address %#llx names no CTA of the cluster",
                                      (unsigned long long)address));
        }
        target = ctas[rank - 1].get();
        if (space == Space::kShared && target != warp.cta) {
            fail("SHARED_OOB", format("shared::cta access of address %#llx, which is another CTA's",
                                      (unsigned long long)address));
        }
        if (target != warp.cta && !target->alive()) {
            fail("CLUSTER_EXIT", "access of the shared memory of a CTA that has exited");
        }
    }
    offset = static_cast<uint32_t>(address & 0xffffff);
    check_shared_bounds(*target, offset, bytes);
    return *target;
}

void Machine::require_initialised(const Cta& cta, uint32_t offset, uint32_t bytes, int lane) const {
    const uint8_t* states = &cta.states[offset];
    uint8_t common = kInitialised, any = 0;
    for (uint32_t i = 0; i < bytes; ++i) {
        common &= states[i];
        any |= states[i];
    }
    if (common == kInitialised && any == kInitialised) return;
    uint32_t byte = 0;
    while (states[byte] == kInitialised) ++byte;
    const uint32_t at = offset + byte - kSharedReserved;
    if (states[byte] & kInFlight) {
        fail("ASYNC_RACE",
             format("lane %d reads shared offset %u while an asynchronous write to it is in flight", lane,
                    at));
    }
    if (states[byte] & kMbarrierObject) {
        fail("MBAR_MISUSE", format("lane %d reads the mbarrier at shared offset %u", lane, at));
    }
    fail("UNINIT", format("lane %d reads shared offset %u, which was never written", lane, at));
}

void Machine::shared_read(Cta& cta, uint32_t offset, uint32_t bytes, const Access& access, const View& view) {
    shared_read(cta, {&offset, 1}, bytes, access, view);
}

void Machine::shared_read(Cta& cta, std::span<const uint32_t> offsets, uint32_t bytes, const Access& access,
                          const View& view) {
    for (const uint32_t offset : offsets) require_initialised(cta, offset, bytes, access.lane);
    if (!cta.shadow) return;
    Conflict conflict;
    if (cta.shadow->read(offsets, bytes, stamped(access), view, conflict)) return;
    fail(conflict.kind == Conflict::Kind::kProxy ? FaultKind("PROXY") : FaultKind("RACE"),
         describe_conflict(
             *this, format("shared offset %llu", (unsigned long long)(conflict.granule - kSharedReserved)),
             false, access, conflict));
}

bool Machine::shared_write(Cta& cta, uint32_t offset, uint32_t bytes, const Access& access, const View& view,
                           bool forgive_own_warp) {
    uint8_t* states = &cta.states[offset];
    for (uint32_t i = 0; i < bytes; ++i) {
        if (states[i] & (kInFlight | kMbarrierObject)) {
            const uint32_t at = offset + i - kSharedReserved;
            if (states[i] & kMbarrierObject) {
                fail("MBAR_MISUSE",
                     format("lane %d writes the mbarrier at shared offset %u", access.lane, at));
            }
            fail("ASYNC_RACE",
                 format("lane %d writes shared offset %u while an asynchronous write to it is in "
                        "flight",
                        access.lane, at));
        }
        states[i] |= kInitialised;
    }
    if (!cta.shadow) return true;
    Conflict conflict;
    if (cta.shadow->write(offset, bytes, stamped(access), view, conflict)) return true;
    if (forgive_own_warp && conflict.was_write && conflict.actor == access.actor) return false;
    fail("RACE", describe_conflict(*this, format("shared offset %u", offset - kSharedReserved), true, access,
                                   conflict));
}

// ---- global memory

Buffer& Machine::global_touch(uint64_t address, uint32_t bytes, bool write, const Access& access,
                              const View& view, const void* value, Buffer* hint) {
    Buffer* buffer = hint;
    if (!buffer || !buffer->holds(address, bytes) || !(write ? buffer->writable : buffer->readable)) {
        buffer = memory.find(address, bytes, write);
        if (!buffer) {
            const auto [kind, text] = memory.explain(address, bytes, write);
            fail(kind, format("lane %d: ", access.lane) + text);
        }
    }
    const bool reads = !write || access.atomic;
    if (reads && buffer->uninitialised) {
        uint64_t where = 0;
        if (!memory.initialised(*buffer, address, bytes, &where)) {
            fail("UNINIT",
                 format("lane %d reads offset %llu of a buffer of %llu bytes, which was never written",
                        access.lane, (unsigned long long)(where - buffer->base),
                        (unsigned long long)buffer->bytes));
        }
    }
    if (write && (buffer->uninitialised || buffer->overlaps)) memory.mark_written(*buffer, address, bytes);
    if (!buffer->shadow) return *buffer;
    Conflict conflict;
    const uint64_t offset = address - buffer->region_base;
    const bool fine = write ? buffer->shadow->write(offset, bytes, stamped(access), view, conflict)
                            : buffer->shadow->read(offset, bytes, stamped(access), view, conflict);
    if (fine) return *buffer;
    const bool same_value = write && value && conflict.was_write && conflict.actor == access.actor &&
                            std::memcmp(reinterpret_cast<const void*>(address), value, bytes) == 0;
    if (same_value && conflict.kind == Conflict::Kind::kRace) return *buffer;
    const std::string what =
        format("offset %llu of a buffer of %llu bytes", (unsigned long long)(address - buffer->base),
               (unsigned long long)buffer->bytes);
    const FaultKind kind = conflict.kind == Conflict::Kind::kNonCoherent ? FaultKind("NON_COHERENT")
                           : conflict.kind == Conflict::Kind::kProxy     ? FaultKind("PROXY")
                                                                         : FaultKind("GLOBAL_RACE");
    fail(kind, describe_conflict(*this, what, write, access, conflict));
}

// ---- any space

uint8_t* Machine::touch(Warp& warp, const Touch& touch, int lane, uint64_t address, const void* value,
                        Buffer*& buffer) {
    const Space space = resolve(touch.space, address);
    if (address % touch.bytes) {
        fail("MISALIGNED",
             format("lane %d: %u bytes at address %#llx", lane, touch.bytes, (unsigned long long)address));
    }
    Access access = touch.access;
    access.lane = static_cast<uint8_t>(lane);
    switch (space) {
        case Space::kGlobal:
        case Space::kConst:
        case Space::kGeneric:
            buffer =
                &global_touch(address, touch.bytes, touch.write, access, view(warp, lane), value, buffer);
            return reinterpret_cast<uint8_t*>(address);
        case Space::kShared:
        case Space::kSharedCluster: {
            uint32_t offset;
            Cta& cta = shared_target(warp, space, address, touch.bytes, offset);
            if (&cta != warp.cta) engine->remote_access(warp, lane, cta);
            uint8_t* const bytes = &cta.shared[offset];
            if (!touch.write) {
                shared_read(cta, offset, touch.bytes, access, view(warp, lane));
                return bytes;
            }
            if (access.atomic && !(cta.states[offset] & kInitialised)) {
                fail("UNINIT", format("lane %d updates shared offset %u, which was never written", lane,
                                      offset - kSharedReserved));
            }
            const bool same = value && std::memcmp(bytes, value, touch.bytes) == 0;
            shared_write(cta, offset, touch.bytes, access, view(warp, lane), same);
            return bytes;
        }
        case Space::kLocal: {
            const uint32_t frame = warp.cta->launch->launch->kernel->local_bytes;
            if (address + touch.bytes > frame) {
                fail("LOCAL_OOB", format("lane %d: %u bytes at offset %llu of %u bytes of local memory", lane,
                                         touch.bytes, (unsigned long long)address, frame));
            }
            const size_t start = static_cast<size_t>(lane) * frame + address;
            uint8_t* written = &warp.local_written[start];
            for (uint32_t i = 0; i < touch.bytes; ++i) {
                if (touch.write) {
                    written[i] = 1;
                } else if (!written[i] && options.registers) {
                    fail("UNINIT", format("lane %d reads local offset %llu, which was never written", lane,
                                          (unsigned long long)(address + i)));
                }
            }
            return &warp.local[start];
        }
        case Space::kParam: {
            std::vector<uint8_t>& parameters = warp.cta->launch->launch->parameters;
            if (touch.write) fail("PARAM_RO", "write to a kernel parameter");
            if (address + touch.bytes > parameters.size()) {
                fail("PARAM_OOB", format("%u bytes at offset %llu of %zu bytes of parameters", touch.bytes,
                                         (unsigned long long)address, parameters.size()));
            }
            return &parameters[address];
        }
    }
    fail("UNSUPPORTED", "address space");
}

}  // namespace ptxsim
