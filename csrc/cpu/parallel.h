// How a kernel asks for threads without knowing who provides them: torch's pool in the package,
// std::thread in the sanitizer build.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "formats/tiles.h"

namespace dse::cpu {

// IEEE arithmetic while it lives: rounding to nearest, subnormals kept, whatever the caller's thread is set
// to (torch.set_flush_denormal would otherwise change the bits of a result).
class IeeeScope {
  public:
#if defined(__x86_64__)
    IeeeScope() : before_(_mm_getcsr()) { _mm_setcsr(kIeee); }
    ~IeeeScope() { _mm_setcsr(before_); }

  private:
    static constexpr unsigned kIeee = 0x1f80;  // all exceptions masked, round to nearest, no FTZ, no DAZ
    unsigned before_;
#else
    IeeeScope() {}
    ~IeeeScope() {}
#endif
    IeeeScope(const IeeeScope&) = delete;
    IeeeScope& operator=(const IeeeScope&) = delete;
};

class ParallelFor {
  public:
    using Body = void (*)(const void* context, int64_t begin, int64_t end);
    // Must call body over disjoint ranges that cover [0, count), each of at least `grain` items where
    // count allows; bodies must not throw.
    using Run = void (*)(int64_t count, int64_t grain, Body body, const void* context);

    ParallelFor(Run run, int threads) : run_(run), threads_(threads) {}

    // The number of threads that may work at once.
    int threads() const { return threads_; }

    // Calls f(begin, end) over disjoint ranges that cover [0, count), in IEEE arithmetic.
    template <class F>
    void operator()(int64_t count, int64_t grain, const F& f) const {
        const Body body = [](const void* context, int64_t begin, int64_t end) {
            const IeeeScope ieee;
            (*static_cast<const F*>(context))(begin, end);
        };
        if (count == 1) {
            body(&f, 0, 1);
        } else if (count > 1) {
            run_(count, grain < 1 ? 1 : grain, body, &f);
        }
    }

  private:
    Run run_;
    int threads_;
};

// Elements below which a thread of its own costs more than it brings.
inline constexpr int64_t kThreadElements = 16384;

inline int64_t rows_per_thread(int64_t width) {
    return width == 0 ? kThreadElements : ceil_div(kThreadElements, width);
}

}  // namespace dse::cpu
