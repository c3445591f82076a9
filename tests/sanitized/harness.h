// A test harness of two pages for kernels that know no torch: cases register themselves, every case runs on
// every tier of the host in a process of its own, and buffers are exactly as large as they must be, so that
// AddressSanitizer sees every byte read or written beyond them.
//
//     SANITIZED_CASE(my_kernel_on_ragged_rows) {
//         Buffer<float> x(rows * columns);
//         fill_normal(x, 1);
//         ...
//         EXPECT(result[0] == 1.0f);
//     }
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace dse::sanitized {

struct Case {
    std::string name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

struct Registered {
    Registered(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

[[noreturn]] void fail(const char* file, int line, const char* condition);

#define SANITIZED_CASE(name)                                                  \
    static void name();                                                       \
    static const ::dse::sanitized::Registered name##_registered(#name, name); \
    static void name()

#define EXPECT(condition) \
    if (condition) {      \
    } else                \
        ::dse::sanitized::fail(__FILE__, __LINE__, #condition)

// `size` elements on the heap and not one more. Results start as a pattern, so that what is never written
// shows.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t size, unsigned char pattern = 0xa5) : size_(size), data_(new T[size]) {
        if (size > 0) std::memset(static_cast<void*>(data_.get()), pattern, size * sizeof(T));
    }
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    int64_t size() const { return size_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }
    bool operator==(const Buffer& other) const {
        return size_ == other.size_ &&
               (size_ == 0 || std::memcmp(data(), other.data(), size_ * sizeof(T)) == 0);
    }

  private:
    int64_t size_;
    std::unique_ptr<T[]> data_;
};

template <class T>
void fill_normal(Buffer<T>& x, uint32_t seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(normal(generator));
}

template <class T>
void fill_bits(Buffer<T>& x, uint32_t seed) {
    std::mt19937 generator(seed);
    auto* bytes = reinterpret_cast<unsigned char*>(x.data());
    for (size_t i = 0; i < x.size() * sizeof(T); ++i) bytes[i] = static_cast<unsigned char>(generator());
}

// Three std::threads, each with a share of its own; `grain` is honoured.
inline cpu::ParallelFor threads() {
    return cpu::ParallelFor(
        [](int64_t count, int64_t grain, cpu::ParallelFor::Body body, const void* context) {
            const int64_t share = std::max((count + 2) / 3, grain);
            std::vector<std::thread> workers;
            for (int64_t begin = 0; begin < count; begin += share)
                workers.emplace_back(body, context, begin, std::min(begin + share, count));
            for (std::thread& worker : workers) worker.join();
        },
        3);
}

// Calls f with the generic tier in use, then returns to the tier that the case runs on.
template <class F>
void on_generic(const F& f) {
    const cpu::Isa isa = cpu::current_isa();
    cpu::set_current_isa(cpu::Isa::kGeneric);
    f();
    cpu::set_current_isa(isa);
}

}  // namespace dse::sanitized
