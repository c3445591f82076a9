// What the driver checks before a launch, with a sentence for each refusal.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#include "device.h"
#include "images.h"
#include "machine.h"

namespace ptxsim {

struct LaunchRequest {
    dim3 grid, block;
    dim3 cluster{0, 0, 0};  // 0: what the kernel declares
    size_t dynamic_shared = 0;
    int rank = 0;
};

// The checked launch, parameters still empty. Throws CudaError with the code that the driver would give.
Launch checked_launch(const Function& function, Module& module, const LaunchRequest& request,
                      const Device& device);

// Reads cluster size out of a launch's attributes and refuses those it cannot honour.
void read_attributes(const cudaLaunchConfig_t& config, LaunchRequest& request);

// The kernel of a function; throws CudaError if its module has none of that name.
const Kernel& kernel_of(const Function& function, Module& module);

// What cudaFuncSetAttribute(MaxDynamicSharedMemorySize) may ask for at most.
uint32_t most_dynamic_shared(const Kernel& kernel);
uint32_t static_shared(const Kernel& kernel);

// Threads a block of the kernel may have, by its launch bounds.
uint32_t most_threads(const Kernel& kernel);
// Registers a thread of the kernel may have, by its launch bounds.
uint32_t most_registers(const Kernel& kernel);

}  // namespace ptxsim
