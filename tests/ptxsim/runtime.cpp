#include "runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "fault.h"
#include "machine.h"
#include "text.h"

namespace ptxsim {
namespace {

// Operations in levels: the host's work of a level runs first, then its launches jointly; an operation that
// waits for host work comes a level after it.
std::vector<std::vector<size_t>> levels_of(const std::vector<Queue::Pending>& pending,
                                           const std::unordered_map<OperationId, size_t>& index) {
    std::vector<size_t> level(pending.size(), 0);
    std::vector<std::vector<size_t>> levels;
    for (size_t i = 0; i < pending.size(); ++i) {
        const bool is_work = !pending[i].operation.launch;
        for (const OperationId id : pending[i].after) {
            const auto found = index.find(id);
            if (found == index.end()) continue;  // ran before
            const bool after_work = !pending[found->second].operation.launch;
            level[i] = std::max(level[i], level[found->second] + (is_work || after_work ? 1 : 0));
        }
        if (levels.size() <= level[i]) levels.resize(level[i] + 1);
        levels[level[i]].push_back(i);
    }
    return levels;
}

}  // namespace

Runtime& Runtime::instance() {
    static Runtime* runtime = new Runtime;  // outlives the libraries that unregister their images at exit
    return *runtime;
}

Module& Runtime::module(Image& image) {
    const bool first = !image.parsed();
    Module& module = image.module(device.capability);
    if (first) memory.add_variables(module);
    return module;
}

void Runtime::unload(Image* image) {
    if (image->parsed()) {
        const Module& gone = image->module(device.capability);
        queue.forget(&gone);
        for (const auto& [name, variable] : gone.variables) memory.remove(variable->data);
    }
    images.remove(image);
}

const Function& Runtime::function(const void* host_function) { return mutable_function(host_function); }

Function& Runtime::mutable_function(const void* host_function) {
    const auto found = images.functions.find(host_function);
    if (found == images.functions.end())
        throw CudaError(cudaErrorInvalidDeviceFunction, "IMAGE",
                        "no kernel is registered under this address");
    return found->second;
}

void* Runtime::symbol_address(const void* host_variable, uint64_t* bytes) {
    const auto found = images.symbols.find(host_variable);
    if (found == images.symbols.end())
        throw CudaError(cudaErrorInvalidSymbol, "IMAGE", "no variable is registered under this address");
    Module& loaded = module(*found->second.image);
    const auto variable = loaded.variables.find(found->second.name);
    if (variable == loaded.variables.end())
        throw CudaError(cudaErrorInvalidSymbol, "IMAGE",
                        format("the PTX holds no variable %s", found->second.name.c_str()));
    *bytes = found->second.bytes;
    return variable->second->data;
}

void Runtime::launch(const Function& function, const LaunchRequest& asked, const void* const* arguments,
                     Stream& stream) {
    Module& loaded = module(*function.image);
    LaunchRequest request = asked;
    request.rank = stream.device;
    Launch launch = checked_launch(function, loaded, request, device);
    launch.parameters.assign(launch.kernel->parameter_bytes, 0);
    for (size_t i = 0; i < launch.kernel->parameters.size(); ++i) {
        const Parameter& parameter = launch.kernel->parameters[i];
        std::memcpy(&launch.parameters[parameter.offset], arguments[i], parameter.bytes);
    }
    queue.submit(stream, {std::move(launch), nullptr});
}

void Runtime::submit_work(Stream& stream, std::function<void()> work) {
    queue.submit(stream, {std::nullopt, std::move(work)});
}

void Runtime::forbid_and_synchronize(const char* what) {
    queue.forbid_in_capture(what);
    synchronize();
}

void Runtime::synchronize() {
    std::vector<Queue::Pending> pending = queue.take();
    if (pending.empty()) return;
    std::unordered_map<OperationId, size_t> index;
    for (size_t i = 0; i < pending.size(); ++i) index[pending[i].id] = i;
    counters.clear();
    for (const std::vector<size_t>& level : levels_of(pending, index)) {
        std::vector<Launch> launches;
        std::unordered_map<OperationId, int> position;
        for (const size_t i : level) {
            Operation& operation = pending[i].operation;
            if (!operation.launch) {
                operation.work();
                continue;
            }
            for (const OperationId id : pending[i].after)
                if (const auto found = position.find(id); found != position.end())
                    operation.launch->after.push_back(found->second);
            position[pending[i].id] = static_cast<int>(launches.size());
            launches.push_back(std::move(*operation.launch));
        }
        if (!launches.empty()) run(launches);
    }
}

void Runtime::run(std::vector<Launch>& launches) {
    Machine machine(memory, options);
    machine.run(launches);
    for (const Launch& launch : launches) counters.push_back(launch.counters.json(*launch.kernel));
}

void Runtime::host_wrote(void* start, size_t bytes) {
    const auto address = reinterpret_cast<uint64_t>(start);
    if (Buffer* buffer = memory.find(address, bytes, true)) memory.mark_written(*buffer, address, bytes);
}

void* Runtime::allocate(size_t bytes) {
    if (bytes == 0) return nullptr;
    void* pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (pointer == nullptr)
        throw CudaError(cudaErrorMemoryAllocation, "MEMORY", format("no room for %zu bytes", bytes));
    std::memset(pointer, 0xcd, bytes);
    allocations_[pointer] = bytes;
    memory.add(pointer, bytes, true, true, true);
    return pointer;
}

void Runtime::release(void* pointer) {
    if (pointer == nullptr) return;
    if (allocations_.erase(pointer) == 0)
        throw CudaError(cudaErrorInvalidValue, "MEMORY",
                        "cudaFree of what cudaMalloc did not return, or a second one");
    memory.remove(pointer);
    std::free(pointer);
}

void Runtime::forget_buffers() {
    queue.take();
    memory.forget();
    for (const auto& [image, owned] : images.loaded)
        if (owned->parsed()) memory.add_variables(owned->module(device.capability));
    for (const auto& [pointer, bytes] : allocations_) memory.add(pointer, bytes, true, true, false);
}

void Runtime::reset() {
    queue.reset();
    forget_buffers();
    options = {};
    device = {};
    error.clear();
    counters.clear();
    current_device = 0;
    last_error() = cudaSuccess;
}

cudaError_t& last_error() {
    thread_local cudaError_t error = cudaSuccess;
    return error;
}

cudaError_t guarded(const std::function<void(Runtime&)>& call) {
    Runtime& runtime = Runtime::instance();
    const std::lock_guard lock(runtime.mutex);
    cudaError_t code = cudaSuccess;
    try {
        call(runtime);
    } catch (const CudaError& error) {
        code = error.code;
        runtime.error = error.what();
    } catch (const Fault& fault) {
        code = fault.kind == "IMAGE"   ? cudaErrorNoKernelImageForDevice
               : fault.kind == "PARSE" ? cudaErrorInvalidPtx
                                       : cudaErrorLaunchFailure;
        runtime.error = fault.what();
    } catch (const std::exception& other) {
        code = cudaErrorUnknown;
        runtime.error = Fault("INTERNAL", other.what()).what();
    }
    if (code != cudaSuccess) last_error() = code;
    return code;
}

}  // namespace ptxsim
