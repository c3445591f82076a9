// Stand-in libcudart, part 3: streams, events, stream capture and graphs.
#include <cuda_runtime_api.h>

#include "cudart.h"
#include "runtime.h"

using namespace ptxsim;

namespace {

Event& event_of(cudaEvent_t handle) { return *reinterpret_cast<Event*>(handle); }

}  // namespace

extern "C" {

PTXSIM_EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return guarded([&](Runtime& runtime) {
        const bool blocking = (flags & cudaStreamNonBlocking) == 0;
        *stream =
            reinterpret_cast<cudaStream_t>(runtime.queue.create_stream(runtime.current_device, blocking));
    });
}

PTXSIM_EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

PTXSIM_EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}

PTXSIM_EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return guarded([&](Runtime& runtime) { runtime.queue.destroy_stream(&runtime.stream(stream)); });
}

PTXSIM_EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return guarded([&](Runtime& runtime) {
        runtime.queue.forbid_in_capture("cudaStreamSynchronize", runtime.stream(stream));
        runtime.synchronize();
    });
}

// Whether anything is pending is not told apart by stream: all of it runs when any stream is waited for.
PTXSIM_EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

PTXSIM_EXPORT cudaError_t cudaDeviceSynchronize() {
    return guarded([](Runtime& runtime) { runtime.forbid_and_synchronize("cudaDeviceSynchronize"); });
}

PTXSIM_EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    return guarded([&](Runtime& runtime) { runtime.queue.wait(runtime.stream(stream), event_of(event)); });
}

PTXSIM_EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return guarded(
        [&](Runtime& runtime) { *event = reinterpret_cast<cudaEvent_t>(runtime.queue.create_event()); });
}

PTXSIM_EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

PTXSIM_EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return guarded([&](Runtime& runtime) { runtime.queue.destroy_event(&event_of(event)); });
}

PTXSIM_EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return guarded([&](Runtime& runtime) { runtime.queue.record(event_of(event), runtime.stream(stream)); });
}

PTXSIM_EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return guarded([&](Runtime& runtime) {
        if (event_of(event).capture)
            throw CudaError(cudaErrorCapturedEvent, "CAPTURE",
                            "the event was recorded in a capturing stream");
        runtime.synchronize();
    });
}

PTXSIM_EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

// There is no clock to read: a program that times kernels here would report nonsense.
PTXSIM_EXPORT cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) {
    return guarded([](Runtime&) {
        throw CudaError(cudaErrorNotSupported, "TIME", "the simulator has no notion of time");
    });
}

PTXSIM_EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return guarded([&](Runtime& runtime) { runtime.queue.begin_capture(runtime.stream(stream), mode); });
}

PTXSIM_EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = nullptr;
    return guarded([&](Runtime& runtime) {
        *graph = reinterpret_cast<cudaGraph_t>(runtime.queue.end_capture(runtime.stream(stream)).release());
    });
}

PTXSIM_EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    return guarded([&](Runtime& runtime) {
        const auto& capture = runtime.stream(stream).capture;
        *status = !capture                 ? cudaStreamCaptureStatusNone
                  : capture->fault.empty() ? cudaStreamCaptureStatusActive
                                           : cudaStreamCaptureStatusInvalidated;
    });
}

// The mode is kept a capture, not a thread: what torch exchanges it for (allocations of its own) does not
// happen here.
PTXSIM_EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    *mode = cudaStreamCaptureModeGlobal;
    return cudaSuccess;
}

PTXSIM_EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                               unsigned long long) {
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
}

PTXSIM_EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    return guarded([&](Runtime& runtime) {
        runtime.queue.launch_graph(*reinterpret_cast<Graph*>(executable), runtime.stream(stream));
    });
}

PTXSIM_EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Graph*>(graph);
    return cudaSuccess;
}

PTXSIM_EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<Graph*>(executable);
    return cudaSuccess;
}
}
