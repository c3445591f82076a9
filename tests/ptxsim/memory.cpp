#include "memory.h"

#include <algorithm>
#include <bit>

#include "report.h"

namespace ptxsim {

void Buffer::mark_written(uint64_t address, uint64_t size) {
    uint64_t bit = address - base;
    const uint64_t end = bit + size;
    while (bit < end) {
        const uint64_t low = bit & 63, count = std::min<uint64_t>(64 - low, end - bit);
        const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << low;
        written[bit >> 6] |= mask;
        bit += count;
    }
}

uint64_t Buffer::first_unwritten(uint64_t address, uint64_t size) const {
    uint64_t bit = address - base;
    const uint64_t end = bit + size;
    while (bit < end) {
        const uint64_t low = bit & 63, count = std::min<uint64_t>(64 - low, end - bit);
        const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << low;
        const uint64_t gap = ~written[bit >> 6] & mask;
        if (gap) return (bit & ~uint64_t{63}) + static_cast<uint64_t>(std::countr_zero(gap));
        bit += count;
    }
    return bytes;
}

void Memory::add(const void* start, uint64_t bytes, bool readable, bool writable, bool uninitialised) {
    const auto base = reinterpret_cast<uint64_t>(start);
    if (!bytes) {
        buffers_.erase(base);
        return;
    }
    Buffer buffer;
    buffer.base = base;
    buffer.bytes = bytes;
    buffer.readable = readable;
    buffer.writable = writable;
    buffer.uninitialised = uninitialised;
    if (uninitialised) buffer.written.assign((bytes + 63) / 64, 0);
    buffers_[base] = std::move(buffer);
    largest_ = std::max(largest_, bytes);
}

void Memory::remove(const void* start) { buffers_.erase(reinterpret_cast<uint64_t>(start)); }

void Memory::forget() {
    buffers_.clear();
    largest_ = 0;
}

void Memory::add_variables(const Module& module) {
    for (const auto& [name, variable] : module.variables) {
        add(variable->data, variable->bytes, true, variable->space != Space::kConst, false);
    }
}

const Buffer* Memory::at(const void* start) const {
    auto it = buffers_.find(reinterpret_cast<uint64_t>(start));
    return it == buffers_.end() ? nullptr : &it->second;
}

Buffer* Memory::find(uint64_t address, uint64_t bytes, bool write) {
    auto it = buffers_.upper_bound(address);
    while (it != buffers_.begin()) {
        --it;
        Buffer& buffer = it->second;
        if (buffer.holds(address, bytes) && (write ? buffer.writable : buffer.readable)) return &buffer;
        if (address - buffer.base >= largest_) break;
    }
    return nullptr;
}

std::pair<FaultKind, std::string> Memory::explain(uint64_t address, uint64_t bytes, bool write) const {
    const char* verb = write ? "write" : "read";
    const Buffer* nearest = nullptr;
    uint64_t least = UINT64_MAX;
    for (const auto& [base, buffer] : buffers_) {
        if (buffer.holds(address, bytes)) {
            return {write ? FaultKind("GLOBAL_RO") : FaultKind("GLOBAL_WO"),
                    format("%s of %llu bytes at offset %llu of a buffer of %llu bytes that may not be %s",
                           verb, (unsigned long long)bytes, (unsigned long long)(address - base),
                           (unsigned long long)buffer.bytes, write ? "written" : "read")};
        }
        const uint64_t end = base + buffer.bytes;
        const uint64_t distance = address < base ? base - address : address > end ? address - end : 0;
        if (distance < least) {
            least = distance;
            nearest = &buffer;
        }
    }
    std::string text =
        format("%s of %llu bytes at %#llx", verb, (unsigned long long)bytes, (unsigned long long)address);
    if (!nearest) return {FaultKind("GLOBAL_OOB"), text + "; no buffer is registered"};
    const auto offset = static_cast<long long>(address - nearest->base);
    return {FaultKind("GLOBAL_OOB"),
            text + format(", at offset %lld of the nearest buffer, which has %llu bytes", offset,
                          (unsigned long long)nearest->bytes)};
}

void Memory::mark_written(Buffer& buffer, uint64_t address, uint64_t bytes) {
    if (buffer.uninitialised) buffer.mark_written(address, bytes);
    if (!buffer.overlaps) return;
    for (auto& [base, other] : buffers_) {
        if (&other == &buffer || !other.uninitialised) continue;
        const uint64_t low = std::max(address, base), high = std::min(address + bytes, base + other.bytes);
        if (low < high) other.mark_written(low, high - low);
    }
}

bool Memory::initialised(const Buffer& buffer, uint64_t address, uint64_t bytes, uint64_t* where) const {
    if (!buffer.uninitialised) return true;
    const uint64_t gap = buffer.first_unwritten(address, bytes);
    if (gap == buffer.bytes) return true;
    *where = buffer.base + gap;
    return false;
}

void Memory::begin_run(bool races) {
    shadows_.clear();
    for (auto it = buffers_.begin(); it != buffers_.end();) {
        // A run of buffers each of which begins before the ones before it end.
        auto last = it;
        uint64_t end = it->first + it->second.bytes;
        bool writable = false;
        int members = 0;
        for (; last != buffers_.end() && (last == it || last->first < end); ++last) {
            end = std::max(end, last->first + last->second.bytes);
            writable |= last->second.writable;
            ++members;
        }
        const uint64_t low = it->first & ~uint64_t{3};
        if (races && writable) shadows_.push_back(std::make_unique<Shadow>(end - low + 4));
        for (; it != last; ++it) {
            it->second.region_base = low;
            it->second.shadow = races && writable ? shadows_.back().get() : nullptr;
            it->second.overlaps = members > 1;
        }
    }
}

void Memory::end_run() {
    for (auto& [base, buffer] : buffers_) buffer.shadow = nullptr;
    shadows_.clear();
}

}  // namespace ptxsim
