// Whether a working set leaves the last-level cache, so that stores should bypass it.
#pragma once
#include <unistd.h>

#include <cstdint>

namespace dse::cpu {

// A non-temporal store saves reading the line first, but sends what the next operator reads to memory: worth
// it only for a working set that the cache cannot hold.
inline bool exceeds_cache(int64_t bytes) {
    static const int64_t capacity = [] {
#ifdef _SC_LEVEL3_CACHE_SIZE
        const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
        if (l3 > 0) return static_cast<int64_t>(l3);
#endif
        return static_cast<int64_t>(32) << 20;
    }();
    return bytes > capacity;
}

}  // namespace dse::cpu
