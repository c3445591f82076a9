#include "launch_rules.h"

#include <algorithm>

#include "queue.h"
#include "text.h"

namespace ptxsim {
namespace {

using Dim = std::array<uint32_t, 3>;

Dim to_dim(dim3 d) { return {d.x, d.y, d.z}; }
uint64_t product(const Dim& d) { return uint64_t{d[0]} * d[1] * d[2]; }
std::string shown(const Dim& d) { return format("(%u, %u, %u)", d[0], d[1], d[2]); }

Dim to_dim(const std::array<int32_t, 3>& d) {  // a directive may leave out trailing numbers
    const auto at_least_one = [](int32_t n) { return static_cast<uint32_t>(std::max(n, 1)); };
    return {at_least_one(d[0]), at_least_one(d[1]), at_least_one(d[2])};
}

void check_grid(const Kernel& kernel, const Dim& grid) {
    for (int i = 0; i < 3; ++i)
        if (grid[i] == 0 || grid[i] > kMaxGrid[i])
            throw CudaError(cudaErrorInvalidConfiguration, "LAUNCH",
                            format("grid %s of kernel %s: dimension %d must be in 1 .. %u",
                                   shown(grid).c_str(), kernel.name.c_str(), i, kMaxGrid[i]));
}

void check_block(const Kernel& kernel, const Dim& block) {
    for (int i = 0; i < 3; ++i)
        if (block[i] == 0 || block[i] > kMaxBlock[i])
            throw CudaError(cudaErrorInvalidConfiguration, "LAUNCH",
                            format("block %s of kernel %s: dimension %d must be in 1 .. %u",
                                   shown(block).c_str(), kernel.name.c_str(), i, kMaxBlock[i]));
    if (product(block) > kMaxThreadsPerBlock)
        throw CudaError(cudaErrorInvalidConfiguration, "LAUNCH",
                        format("block %s of kernel %s has more than %u threads", shown(block).c_str(),
                               kernel.name.c_str(), kMaxThreadsPerBlock));
    if (kernel.required_threads[0] != 0 && block != to_dim(kernel.required_threads))
        throw CudaError(cudaErrorInvalidValue, "LAUNCH",
                        format("block %s of kernel %s: it requires %s", shown(block).c_str(),
                               kernel.name.c_str(), shown(to_dim(kernel.required_threads)).c_str()));
    if (product(block) > most_threads(kernel))
        throw CudaError(cudaErrorInvalidValue, "LAUNCH",
                        format("block %s of kernel %s has more threads than its launch bounds, %u",
                               shown(block).c_str(), kernel.name.c_str(), most_threads(kernel)));
}

void check_shared(const Function& function, const Kernel& kernel, size_t dynamic_shared) {
    const size_t total = static_shared(kernel) + dynamic_shared;
    const size_t allowed = std::max<size_t>(
        function.max_dynamic_shared, kSharedPerBlock - std::min(kSharedPerBlock, static_shared(kernel)));
    if (total > kSharedPerBlockOptIn)
        throw CudaError(cudaErrorInvalidValue, "LAUNCH",
                        format("kernel %s asks for %zu bytes of shared memory, more than the device's %u",
                               kernel.name.c_str(), total, kSharedPerBlockOptIn));
    if (dynamic_shared > allowed)
        throw CudaError(
            cudaErrorInvalidValue, "LAUNCH",
            format("kernel %s asks for %zu bytes of dynamic shared memory, more than the %zu allowed: "
                   "set cudaFuncAttributeMaxDynamicSharedMemorySize first",
                   kernel.name.c_str(), dynamic_shared, allowed));
}

Dim cluster_of(const Kernel& kernel, const LaunchRequest& request) {
    const bool declared = kernel.cluster[0] != 0, asked = request.cluster.x != 0;
    if (declared && asked && to_dim(kernel.cluster) != to_dim(request.cluster))
        throw CudaError(
            cudaErrorInvalidClusterSize, "LAUNCH",
            format("cluster %s of kernel %s: it declares %s", shown(to_dim(request.cluster)).c_str(),
                   kernel.name.c_str(), shown(to_dim(kernel.cluster)).c_str()));
    if (!declared && !asked && kernel.explicit_cluster)
        throw CudaError(cudaErrorInvalidClusterSize, "LAUNCH",
                        format("kernel %s needs a cluster size at launch", kernel.name.c_str()));
    return asked ? to_dim(request.cluster) : declared ? to_dim(kernel.cluster) : Dim{1, 1, 1};
}

void check_cluster(const Function& function, const Kernel& kernel, const Dim& cluster, const Dim& grid,
                   const Device& device) {
    const uint64_t size = product(cluster);
    if (size == 1) return;
    if (device.capability < 90)
        throw CudaError(cudaErrorInvalidClusterSize, "LAUNCH",
                        format("kernel %s: clusters need compute capability 9.0", kernel.name.c_str()));
    const uint32_t limit = function.non_portable_cluster ? kMaxClusterSize : kPortableClusterSize;
    if (size == 0 || size > limit ||
        (kernel.max_cluster_rank > 0 && size > static_cast<uint64_t>(kernel.max_cluster_rank)))
        throw CudaError(cudaErrorInvalidClusterSize, "LAUNCH",
                        format("cluster %s of kernel %s has more than %u blocks", shown(cluster).c_str(),
                               kernel.name.c_str(), limit));
    for (int i = 0; i < 3; ++i)
        if (grid[i] % cluster[i] != 0)
            throw CudaError(cudaErrorInvalidClusterSize, "LAUNCH",
                            format("grid %s of kernel %s is not a multiple of its cluster %s",
                                   shown(grid).c_str(), kernel.name.c_str(), shown(cluster).c_str()));
}

}  // namespace

uint32_t static_shared(const Kernel& kernel) { return kernel.static_shared_bytes; }

uint32_t most_dynamic_shared(const Kernel& kernel) { return kSharedPerBlockOptIn - static_shared(kernel); }

uint32_t most_threads(const Kernel& kernel) {
    if (kernel.required_threads[0] != 0)
        return static_cast<uint32_t>(product(to_dim(kernel.required_threads)));
    if (kernel.max_threads[0] != 0) return static_cast<uint32_t>(product(to_dim(kernel.max_threads)));
    return kMaxThreadsPerBlock;
}

uint32_t most_registers(const Kernel& kernel) {
    if (kernel.max_registers > 0) return static_cast<uint32_t>(kernel.max_registers);
    const uint32_t blocks = static_cast<uint32_t>(std::max(kernel.min_ctas, 1));
    const uint32_t each = kRegistersPerMultiprocessor / (most_threads(kernel) * blocks);
    return std::clamp(each / 8 * 8, 16u, 255u);
}

const Kernel& kernel_of(const Function& function, Module& module) {
    const auto found = module.kernels.find(function.name);
    if (found == module.kernels.end())
        throw CudaError(cudaErrorInvalidDeviceFunction, "IMAGE",
                        format("the PTX holds no kernel %s", function.name.c_str()));
    return *found->second;
}

void read_attributes(const cudaLaunchConfig_t& config, LaunchRequest& request) {
    for (unsigned i = 0; i < config.numAttrs; ++i) {
        const cudaLaunchAttribute& attribute = config.attrs[i];
        switch (attribute.id) {
            case cudaLaunchAttributeIgnore:
            case cudaLaunchAttributePriority:  // orders nothing that a correct program relies on
            case cudaLaunchAttributePreferredSharedMemoryCarveout:
                break;
            case cudaLaunchAttributeClusterDimension:
                request.cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y,
                                   attribute.val.clusterDim.z};
                break;
            case cudaLaunchAttributeProgrammaticStreamSerialization:
                if (!attribute.val.programmaticStreamSerializationAllowed) break;
                throw CudaError(
                    cudaErrorNotSupported, "LAUNCH",
                    "programmatic dependent launch is not simulated: launch without the attribute");
            default:
                throw CudaError(
                    cudaErrorNotSupported, "LAUNCH",
                    format("launch attribute %d is not simulated", static_cast<int>(attribute.id)));
        }
    }
}

Launch checked_launch(const Function& function, Module& module, const LaunchRequest& request,
                      const Device& device) {
    const Kernel& kernel = kernel_of(function, module);
    Launch launch;
    launch.module = &module;
    launch.kernel = &kernel;
    launch.grid = to_dim(request.grid);
    launch.block = to_dim(request.block);
    launch.cluster = cluster_of(kernel, request);
    launch.dynamic_shared = static_cast<uint32_t>(request.dynamic_shared);
    launch.rank = request.rank;
    check_grid(kernel, launch.grid);
    check_block(kernel, launch.block);
    check_shared(function, kernel, request.dynamic_shared);
    check_cluster(function, kernel, launch.cluster, launch.grid, device);
    return launch;
}

}  // namespace ptxsim
