// How a kernel asks for threads without knowing who provides them: torch's pool in the package,
// std::thread in the sanitizer build.
#pragma once
#include <cstdint>

namespace dse::cpu {

class ParallelFor {
  public:
    using Body = void (*)(const void* context, int64_t begin, int64_t end);
    // Must call body over disjoint ranges that cover [0, count), each of at least `grain` items where
    // count allows; bodies must not throw.
    using Run = void (*)(int64_t count, int64_t grain, Body body, const void* context);

    ParallelFor(Run run, int threads) : run_(run), threads_(threads) {}

    // The number of threads that may work at once.
    int threads() const { return threads_; }

    // Calls f(begin, end) over disjoint ranges that cover [0, count).
    template <class F>
    void operator()(int64_t count, int64_t grain, const F& f) const {
        if (count <= 0) return;
        run_(
            count, grain < 1 ? 1 : grain,
            [](const void* context, int64_t begin, int64_t end) {
                (*static_cast<const F*>(context))(begin, end);
            },
            &f);
    }

  private:
    Run run_;
    int threads_;
};

}  // namespace dse::cpu
