// Whether a working set leaves the last-level cache, so that stores should bypass it.
#pragma once
#include <unistd.h>

#include <cstdint>
#include <cstdio>

namespace dse::cpu {

// Bytes of the last-level cache that one core sees. What the kernel says of core 0 comes first: the C library
// may answer with the sum over a server's parts, 384 MiB where every core has 32 of its own.
inline int64_t last_level_cache() {
    static const int64_t bytes = [] {
        int64_t kilobytes = 0;
        if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
            if (std::fscanf(file, "%ldK", &kilobytes) != 1) kilobytes = 0;
            std::fclose(file);
        }
        if (kilobytes > 0) return kilobytes << 10;
#ifdef _SC_LEVEL3_CACHE_SIZE
        const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
        if (l3 > 0) return static_cast<int64_t>(l3);
#endif
        return static_cast<int64_t>(32) << 20;
    }();
    return bytes;
}

// A non-temporal store saves reading the line first, but sends what the next operator reads to memory: worth
// it only for a working set that the cache cannot hold.
inline bool exceeds_cache(int64_t bytes) { return bytes > last_level_cache(); }

}  // namespace dse::cpu
