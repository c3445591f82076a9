// Launchers as an extension has them, for test_cudart.py: each returns the first error of the CUDA runtime.
#include <cuda_runtime.h>

#include <cstdint>

#define CHECK(call)                                                               \
    do {                                                                          \
        if (const cudaError_t error = (call); error != cudaSuccess) return error; \
    } while (0)

namespace {

__constant__ float factor = 2.f;
__device__ int calls;

__global__ void add(float* x, float y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += y;
}

__global__ void scale(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= factor;
    if (i == 0) calls += 1;
}

__global__ void copy(float* to, const float* from, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = from[i];
}

__global__ void fill_shared(float* x, int floats) {
    extern __shared__ float dynamic[];
    __shared__ float fixed[1024];
    for (int i = threadIdx.x; i < floats; i += blockDim.x) dynamic[i] = 1.f;
    fixed[threadIdx.x] = 1.f;
    __syncthreads();
    float sum = fixed[threadIdx.x];
    for (int i = threadIdx.x; i < floats; i += blockDim.x) sum += dynamic[i];
    atomicAdd(x, sum);
}

__global__ void __launch_bounds__(128) bounded(float* x) { x[threadIdx.x] = 1.f; }

}  // namespace

extern "C" {

int launch_add(float* x, float y, int n, cudaStream_t stream) {
    add<<<(n + 127) / 128, 128, 0, stream>>>(x, y, n);
    return cudaGetLastError();
}

int launch_scale(float* x, int n) {
    scale<<<(n + 127) / 128, 128>>>(x, n);
    return cudaGetLastError();
}

int launch_copy(float* to, const float* from, int n, cudaStream_t stream) {
    copy<<<(n + 127) / 128, 128, 0, stream>>>(to, from, n);
    return cudaGetLastError();
}

int set_factor(float value) { return cudaMemcpyToSymbol(factor, &value, sizeof value); }
int get_calls(int* value) { return cudaMemcpyFromSymbol(value, calls, sizeof *value); }
int clear_calls() {
    void* address;
    CHECK(cudaGetSymbolAddress(&address, calls));
    size_t bytes;
    CHECK(cudaGetSymbolSize(&bytes, calls));
    return cudaMemset(address, 0, bytes);
}
int overrun_symbol(float* values) { return cudaMemcpyToSymbol(factor, values, 8); }

int launch_shared(float* x, int bytes, int allow) {
    if (allow > 0)
        CHECK(cudaFuncSetAttribute(fill_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, allow));
    fill_shared<<<1, 128, bytes>>>(x, bytes / 4);
    return cudaGetLastError();
}

int launch_bounded(float* x, unsigned threads) {
    bounded<<<1, threads>>>(x);
    return cudaGetLastError();
}

int launch_dims(float* x, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz) {
    add<<<dim3(gx, gy, gz), dim3(bx, by, bz)>>>(x, 1.f, 0);
    return cudaGetLastError();
}

int launch_programmatic(float* x) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(128);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, add, x, 1.f, 0);
}

int describe_bounded(int* threads, int* blocks, int* shared_of_filler) {
    cudaFuncAttributes attributes;
    CHECK(cudaFuncGetAttributes(&attributes, bounded));
    *threads = attributes.maxThreadsPerBlock;
    CHECK(cudaFuncGetAttributes(&attributes, fill_shared));
    *shared_of_filler = static_cast<int>(attributes.sharedSizeBytes);
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, bounded, 128, 0);
}

// x += 1 on one stream, then y = x on another: ordered by an event, or not.
int two_streams(float* x, float* y, int n, int with_event) {
    cudaStream_t first, second;
    cudaEvent_t event;
    CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    CHECK(static_cast<cudaError_t>(launch_add(x, 1.f, n, first)));
    if (with_event) {
        CHECK(cudaEventRecord(event, first));
        CHECK(cudaStreamWaitEvent(second, event, 0));
    }
    CHECK(static_cast<cudaError_t>(launch_copy(y, x, n, second)));
    const cudaError_t result = cudaStreamSynchronize(second);
    CHECK(cudaEventDestroy(event));
    CHECK(cudaStreamDestroy(first));
    CHECK(cudaStreamDestroy(second));
    return result;
}

// Captures two launches and `spoil`: 0 nothing, 1 cudaMalloc, 2 a synchronisation, 3 the default stream.
// Replays the graph `replays` times.
int capture(float* x, int n, int spoil, int replays) {
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    cudaStreamCaptureStatus status;
    CHECK(cudaStreamIsCapturing(stream, &status));
    if (status != cudaStreamCaptureStatusActive) return -1;
    CHECK(static_cast<cudaError_t>(launch_add(x, 1.f, n, stream)));
    cudaError_t spoiled = cudaSuccess;
    void* memory = nullptr;
    if (spoil == 1) spoiled = cudaMalloc(&memory, 16);
    if (spoil == 2) spoiled = cudaStreamSynchronize(stream);
    if (spoil == 3) spoiled = static_cast<cudaError_t>(launch_add(x, 1.f, n, nullptr));
    cudaGetLastError();
    if (spoiled == cudaSuccess) CHECK(static_cast<cudaError_t>(launch_add(x, 2.f, n, stream)));
    cudaGraph_t graph;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    cudaGetLastError();
    if (ended == cudaSuccess) {
        cudaGraphExec_t executable;
        CHECK(cudaGraphInstantiate(&executable, graph, 0));
        for (int i = 0; i < replays; ++i) CHECK(cudaGraphLaunch(executable, stream));
        CHECK(cudaStreamSynchronize(stream));
        CHECK(cudaGraphExecDestroy(executable));
        CHECK(cudaGraphDestroy(graph));
    }
    CHECK(cudaStreamDestroy(stream));
    return spoiled != cudaSuccess ? spoiled : ended;
}

// A capture that forks to a second stream and comes back, or (joined == 0) does not.
int fork_capture(float* x, float* y, int n, int joined) {
    cudaStream_t first, second;
    cudaEvent_t fork, join;
    CHECK(cudaStreamCreate(&first));
    CHECK(cudaStreamCreate(&second));
    CHECK(cudaEventCreate(&fork));
    CHECK(cudaEventCreate(&join));
    CHECK(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    CHECK(static_cast<cudaError_t>(launch_add(x, 1.f, n, first)));
    CHECK(cudaEventRecord(fork, first));
    CHECK(cudaStreamWaitEvent(second, fork, 0));
    CHECK(static_cast<cudaError_t>(launch_copy(y, x, n, second)));
    if (joined) {
        CHECK(cudaEventRecord(join, second));
        CHECK(cudaStreamWaitEvent(first, join, 0));
    }
    cudaGraph_t graph;
    CHECK(cudaStreamEndCapture(first, &graph));
    cudaGraphExec_t executable;
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    CHECK(cudaGraphLaunch(executable, first));
    CHECK(cudaStreamSynchronize(first));
    return cudaSuccess;
}

// memset, kernel, copy: in order on one stream.
int memory_in_order(float* x, float* back, int n) {
    float* device;
    CHECK(cudaMalloc(reinterpret_cast<void**>(&device), sizeof(float) * n));
    CHECK(cudaMemsetAsync(device, 0, sizeof(float) * n, nullptr));
    CHECK(cudaMemcpyAsync(device, x, sizeof(float) * (n / 2), cudaMemcpyHostToDevice, nullptr));
    CHECK(static_cast<cudaError_t>(launch_add(device, 3.f, n, nullptr)));
    CHECK(cudaMemcpyAsync(back, device, sizeof(float) * n, cudaMemcpyDeviceToHost, nullptr));
    CHECK(cudaStreamSynchronize(nullptr));
    return cudaFree(device);
}

// A kernel that reads what cudaMalloc returned before anything was written there.
int read_unwritten(float* x, int n) {
    float* device;
    CHECK(cudaMalloc(reinterpret_cast<void**>(&device), sizeof(float) * n));
    CHECK(static_cast<cudaError_t>(launch_copy(x, device, n, nullptr)));
    const cudaError_t result = cudaDeviceSynchronize();
    CHECK(cudaFree(device));
    return result;
}
}
