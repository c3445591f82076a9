// The state behind the CUDA runtime's entry points and the simulator's C face: one machine a process.
#pragma once

#include <driver_types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "device.h"
#include "images.h"
#include "launch_rules.h"
#include "memory.h"
#include "options.h"
#include "queue.h"

namespace ptxsim {

class Runtime {
  public:
    static Runtime& instance();

    // Checks and queues; `arguments` points at one pointer a parameter, as cudaLaunchKernel takes them.
    void launch(const Function& function, const LaunchRequest& request, const void* const* arguments,
                Stream& stream);
    void submit_work(Stream& stream, std::function<void()> work);

    // Refuses inside a capture, where `what` waits or allocates; then runs all that is queued.
    void forbid_and_synchronize(const char* what);

    // Runs all that is queued. Throws Fault; what was queued is forgotten either way.
    void synchronize();

    const Function& function(const void* host_function);
    Function& mutable_function(const void* host_function);
    // The address of a kernel's variable, known to the kernels as a buffer from then on.
    void* symbol_address(const void* host_variable, uint64_t* bytes);
    Module& module(Image& image);  // parsed, its variables known to kernels
    void unload(Image* image);
    Stream& stream(cudaStream_t handle) { return queue.stream(handle, current_device); }

    void* allocate(size_t bytes);
    void release(void* pointer);
    void host_wrote(void* start, size_t bytes);
    // All but what cudaMalloc returned and kernels' variables; drops what is queued.
    void forget_buffers();

    void reset();

    Device device;
    Options options;
    Images images;
    Queue queue;
    Memory memory;
    std::string error;                  // "KIND: sentence"
    std::vector<std::string> counters;  // of the launches that ran last, a JSON object each
    int current_device = 0;
    std::recursive_mutex mutex;

  private:
    void run(std::vector<Launch>& launches);

    std::map<void*, size_t> allocations_;
};

// Runs one call of the runtime's: takes the lock, turns exceptions into the error code, remembers it.
cudaError_t guarded(const std::function<void(Runtime&)>& call);

// The calling thread's last error, as cudaGetLastError reports it.
cudaError_t& last_error();

}  // namespace ptxsim
