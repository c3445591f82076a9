// Streams, events and graphs: the order in which queued work runs. Nothing runs when it is submitted; a
// synchronisation takes all that is pending and runs it jointly, ordered by the edges kept here and by
// nothing else.
#pragma once

#include <driver_types.h>

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "machine.h"

namespace ptxsim {

// What a call of the runtime returns instead of cudaSuccess, and why.
class CudaError : public Fault {
  public:
    CudaError(cudaError_t error, FaultKind fault_kind, const std::string& why)
        : Fault(fault_kind, why), code(error) {}
    cudaError_t code;
};

using OperationId = uint64_t;

// A launch, or work of the host's (a copy, a fill).
struct Operation {
    std::optional<Launch> launch;
    std::function<void()> work;
};

struct Graph {
    struct Node {
        Operation operation;
        std::vector<int> after;  // earlier nodes
    };
    std::vector<Node> nodes;
};

struct Stream;

// A capture in progress. Work submitted to its streams becomes nodes.
struct Capture {
    Stream* origin = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::string fault;  // why the capture is invalid; empty: it is not
    Graph graph;
};

struct Stream {
    int device = 0;
    bool legacy = false;               // the default stream: ordered with every blocking stream of its device
    bool blocking = true;              // not cudaStreamNonBlocking
    std::vector<OperationId> last;     // what the next operation waits for
    std::shared_ptr<Capture> capture;  // null: none
    std::vector<int> tail;             // nodes of the capture that the next one waits for
};

struct Event {
    std::vector<OperationId> after;
    std::shared_ptr<Capture> capture;  // recorded in a capturing stream
    std::vector<int> tail;
};

class Queue {
  public:
    struct Pending {
        OperationId id;
        Operation operation;
        std::vector<OperationId> after;
    };

    // The stream of a handle, as the current device sees it (0, cudaStreamLegacy, cudaStreamPerThread are
    // special).
    Stream& stream(cudaStream_t handle, int device);
    Stream* create_stream(int device, bool blocking);
    void destroy_stream(Stream* stream);
    Event* create_event();
    void destroy_event(Event* event);

    void submit(Stream& stream, Operation operation);
    void record(Event& event, Stream& stream);
    void wait(Stream& stream, const Event& event);

    void begin_capture(Stream& stream, cudaStreamCaptureMode mode);
    std::unique_ptr<Graph> end_capture(Stream& stream);
    void launch_graph(const Graph& graph, Stream& stream);

    // Throws, and spoils the captures in progress, when a call that a capture forbids is made during one.
    void forbid_in_capture(const char* what);
    // The same for a call that waits for one stream.
    void forbid_in_capture(const char* what, Stream& stream);

    // Drops pending launches of the module's kernels.
    void forget(const Module* module);
    // All that is pending, in the order of submission; afterwards it counts as done.
    std::vector<Pending> take();
    void reset();

  private:
    OperationId enqueue(Operation operation, std::vector<OperationId> after);
    std::vector<OperationId> predecessors(const Stream& stream) const;
    void require_valid(const Stream& stream) const;

    OperationId next_ = 1;
    std::vector<Pending> pending_;
    std::map<int, std::unique_ptr<Stream>> legacy_, per_thread_;
    std::map<Stream*, std::unique_ptr<Stream>> streams_;
    std::map<Event*, std::unique_ptr<Event>> events_;
    std::list<std::shared_ptr<Capture>> captures_;
};

}  // namespace ptxsim
