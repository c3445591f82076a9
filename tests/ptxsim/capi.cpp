// The simulator's own C face (cudart.h).
#include <algorithm>
#include <cstring>
#include <string>

#include "cudart.h"
#include "fault.h"
#include "runtime.h"
#include "text.h"

using namespace ptxsim;

namespace {

// Options of the device rather than of a run.
struct DeviceOption {
    const char* name;
    int64_t Device::* field;
    int64_t least, most;
};
constexpr DeviceOption kDeviceOptions[] = {
    {"multiprocessors", &Device::multiprocessors, 1, 1024},
    {"capability", &Device::capability, 80, 90},
    {"devices", &Device::count, 1, 64},
};

// Streams that ptxsim_launch names by number.
std::map<int, Stream*>& numbered_streams() {
    static auto* streams = new std::map<int, Stream*>;
    return *streams;
}

Stream& numbered_stream(Runtime& runtime, int stream, int rank) {
    Stream*& handle = numbered_streams()[stream << 8 | rank];
    if (handle == nullptr) handle = runtime.queue.create_stream(rank, false);
    return *handle;
}

std::string describe(const Module& module) {
    std::string json = "{";
    for (const auto& [name, kernel] : module.kernels) {
        json += format("%s\"%s\": [", json.size() > 1 ? ", " : "", name.c_str());
        for (size_t i = 0; i < kernel->parameters.size(); ++i)
            json += format("%s[%u, %u]", i ? ", " : "", kernel->parameters[i].offset,
                           kernel->parameters[i].bytes);
        json += "]";
    }
    return json + "}";
}

}  // namespace

extern "C" {

void ptxsim_buffer(const void* p, size_t bytes, int flags) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    runtime.memory.add(p, bytes, flags & PTXSIM_READABLE, flags & PTXSIM_WRITABLE,
                       flags & PTXSIM_UNINITIALISED);
}

void ptxsim_forget_buffers() {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    runtime.forget_buffers();
}

int ptxsim_unwritten(const void* p, size_t* offset) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    const Buffer* buffer = runtime.memory.at(p);
    if (buffer == nullptr || !buffer->uninitialised) return -1;
    const uint64_t first = buffer->first_unwritten(buffer->base, buffer->bytes);
    if (first == buffer->bytes) return 0;
    *offset = first;
    return 1;
}

int ptxsim_option(const char* name, int64_t value) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    for (const DeviceOption& option : kDeviceOptions) {
        if (std::strcmp(name, option.name) != 0) continue;
        if (value < option.least || value > option.most) return 1;
        runtime.device.*option.field = value;
        return 0;
    }
    return runtime.options.set(name, value) ? 0 : 1;
}

void ptxsim_reset() {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    runtime.reset();
}

int ptxsim_synchronize() {
    return guarded([](Runtime& runtime) {
        runtime.error.clear();
        runtime.forbid_and_synchronize("ptxsim_synchronize");
    });
}

const char* ptxsim_error() { return Runtime::instance().error.c_str(); }

const char* ptxsim_counters() {
    thread_local std::string json;
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    json = "[";
    for (const std::string& launch : runtime.counters) json += (json.size() > 1 ? ", " : "") + launch;
    json += "]";
    return json.c_str();
}

void* ptxsim_module(const char* ptx, size_t length) {
    Image* image = nullptr;
    const cudaError_t error = guarded([&](Runtime& runtime) {
        auto made = Image::from_text(std::string(ptx, length));
        runtime.module(*made);
        image = runtime.images.add(std::move(made));
    });
    return error == cudaSuccess ? image : nullptr;
}

void ptxsim_unload(void* module) {
    guarded([&](Runtime& runtime) { runtime.unload(static_cast<Image*>(module)); });
}

const char* ptxsim_kernels(void* module) {
    thread_local std::string json;
    guarded([&](Runtime& runtime) { json = describe(runtime.module(*static_cast<Image*>(module))); });
    return json.c_str();
}

int ptxsim_launch(void* module, const char* kernel, const uint32_t* dims, uint32_t shared_bytes,
                  const void* params, size_t param_bytes, int stream, int rank) {
    return guarded([&](Runtime& runtime) {
        // Kernels launched by name need no cudaFuncSetAttribute.
        Function function{static_cast<Image*>(module), kernel};
        const Kernel& found = kernel_of(function, runtime.module(*function.image));
        function.max_dynamic_shared = most_dynamic_shared(found);
        if (param_bytes != found.parameter_bytes)
            throw CudaError(cudaErrorInvalidValue, "LAUNCH",
                            format("kernel %s takes %u bytes of parameters, not %zu", kernel,
                                   found.parameter_bytes, param_bytes));
        if (rank < 0 || rank >= runtime.device.count)
            throw CudaError(cudaErrorInvalidDevice, "LAUNCH", format("there is no rank %d", rank));
        std::vector<const void*> arguments;
        for (const Parameter& parameter : found.parameters)
            arguments.push_back(static_cast<const uint8_t*>(params) + parameter.offset);
        const LaunchRequest request{{dims[0], dims[1], dims[2]},
                                    {dims[3], dims[4], dims[5]},
                                    {dims[6], dims[7], dims[8]},
                                    shared_bytes};
        runtime.launch(function, request, arguments.data(), numbered_stream(runtime, stream, rank));
    });
}
}
