// Global memory: the host's, as far as buffers are registered. It outlives a run.
//
// Views of one allocation are buffers of their own and may overlap: an access is allowed if one buffer holds
// all of it and permits it.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fault.h"
#include "program.h"
#include "shadow.h"

namespace ptxsim {

struct Buffer {
    uint64_t base = 0, bytes = 0;
    bool readable = false, writable = false;
    bool uninitialised = false;     // when registered: reading a byte that was not written since is a fault
    std::vector<uint64_t> written;  // a bit a byte, of an uninitialised buffer
    // Overlapping buffers share one region of shadow memory; set while a run lasts.
    uint64_t region_base = 0;
    Shadow* shadow = nullptr;  // null: nothing in the region can be written, or races are not looked for
    bool overlaps = false;     // another buffer shares bytes with this one

    bool holds(uint64_t address, uint64_t size) const {
        return address >= base && size <= bytes && address - base <= bytes - size;
    }
    void mark_written(uint64_t address, uint64_t size);
    // The offset of the first byte of the range that was not written, or `bytes`.
    uint64_t first_unwritten(uint64_t address, uint64_t size) const;
};

class Memory {
  public:
    // Registering the same start again replaces size and permissions. No bytes: nothing is registered.
    void add(const void* start, uint64_t bytes, bool readable, bool writable, bool uninitialised);
    void remove(const void* start);
    void forget();
    void add_variables(const Module& module);
    const Buffer* at(const void* start) const;

    // The buffer that holds [address, address + bytes) and permits the access; null if there is none.
    Buffer* find(uint64_t address, uint64_t bytes, bool write);
    // Why find found nothing: kind and text.
    std::pair<FaultKind, std::string> explain(uint64_t address, uint64_t bytes, bool write) const;
    void mark_written(Buffer& buffer, uint64_t address, uint64_t bytes);
    // False, with the address of the byte, if a byte of the range holds nothing yet.
    bool initialised(const Buffer& buffer, uint64_t address, uint64_t bytes, uint64_t* where) const;

    void begin_run(bool races);  // makes shadow memory
    void end_run();              // drops it

  private:
    std::map<uint64_t, Buffer> buffers_;
    std::vector<std::unique_ptr<Shadow>> shadows_;
    uint64_t largest_ = 0;  // bytes of the largest buffer: how far before an address its holder may start
};

}  // namespace ptxsim
