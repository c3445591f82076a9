#include "queue.h"

#include <driver_types.h>

#include <algorithm>

#include "text.h"

namespace ptxsim {
namespace {

void append(std::vector<OperationId>& to, const std::vector<OperationId>& from) {
    to.insert(to.end(), from.begin(), from.end());
}

std::unique_ptr<Stream> make_stream(int device, bool legacy, bool blocking) {
    auto stream = std::make_unique<Stream>();
    stream->device = device;
    stream->legacy = legacy;
    stream->blocking = blocking;
    return stream;
}

}  // namespace

Stream& Queue::stream(cudaStream_t handle, int device) {
    if (handle == nullptr || handle == cudaStreamLegacy) {
        auto& legacy = legacy_[device];
        if (!legacy) legacy = make_stream(device, true, true);
        return *legacy;
    }
    if (handle == cudaStreamPerThread) {
        auto& stream = per_thread_[device];
        if (!stream) stream = make_stream(device, false, true);
        return *stream;
    }
    const auto found = streams_.find(reinterpret_cast<Stream*>(handle));
    if (found == streams_.end())
        throw CudaError(cudaErrorInvalidResourceHandle, "STREAM", "the stream does not exist (any more)");
    return *found->second;
}

Stream* Queue::create_stream(int device, bool blocking) {
    auto stream = make_stream(device, false, blocking);
    Stream* handle = stream.get();
    streams_[handle] = std::move(stream);
    return handle;
}

void Queue::destroy_stream(Stream* stream) {
    if (stream->capture) stream->capture->fault = "a capturing stream was destroyed";
    streams_.erase(stream);
}

Event* Queue::create_event() {
    auto event = std::make_unique<Event>();
    Event* handle = event.get();
    events_[handle] = std::move(event);
    return handle;
}

void Queue::destroy_event(Event* event) { events_.erase(event); }

void Queue::require_valid(const Stream& stream) const {
    if (stream.capture && !stream.capture->fault.empty())
        throw CudaError(cudaErrorStreamCaptureInvalidated, "CAPTURE",
                        "the capture is invalid: " + stream.capture->fault);
}

std::vector<OperationId> Queue::predecessors(const Stream& stream) const {
    std::vector<OperationId> after = stream.last;
    const auto joins = [&](const Stream& other) {
        return &other != &stream && other.device == stream.device && other.blocking &&
               (stream.legacy || other.legacy);
    };
    if (!stream.blocking) return after;
    for (const auto* group : {&legacy_, &per_thread_})
        for (const auto& [device, other] : *group)
            if (joins(*other)) append(after, other->last);
    if (stream.legacy)
        for (const auto& [handle, other] : streams_)
            if (joins(*other)) append(after, other->last);
    return after;
}

OperationId Queue::enqueue(Operation operation, std::vector<OperationId> after) {
    const OperationId id = next_++;
    pending_.push_back({id, std::move(operation), std::move(after)});
    return id;
}

void Queue::submit(Stream& stream, Operation operation) {
    require_valid(stream);
    if (stream.capture) {
        Graph& graph = stream.capture->graph;
        graph.nodes.push_back({std::move(operation), stream.tail});
        stream.tail = {static_cast<int>(graph.nodes.size()) - 1};
        return;
    }
    if (stream.legacy)
        for (const auto& capture : captures_)
            if (capture->origin->blocking && capture->origin->device == stream.device) {
                capture->fault = "work went to the default stream, which waits for the capturing one";
                throw CudaError(cudaErrorStreamCaptureImplicit, "CAPTURE", capture->fault);
            }
    stream.last = {enqueue(std::move(operation), predecessors(stream))};
}

void Queue::record(Event& event, Stream& stream) {
    require_valid(stream);
    event.capture = stream.capture;
    event.tail = stream.tail;
    event.after = stream.capture ? std::vector<OperationId>() : predecessors(stream);
}

void Queue::wait(Stream& stream, const Event& event) {
    require_valid(stream);
    if (event.capture) {
        const bool ended = std::find(captures_.begin(), captures_.end(), event.capture) == captures_.end();
        if (ended || (stream.capture && stream.capture != event.capture))
            throw CudaError(cudaErrorStreamCaptureIsolation, "CAPTURE",
                            "the event belongs to another capture");
        stream.capture = event.capture;
        stream.tail.insert(stream.tail.end(), event.tail.begin(), event.tail.end());
        return;
    }
    if (stream.capture && !event.after.empty()) {
        stream.capture->fault = "a capturing stream waited for an event recorded outside the capture";
        throw CudaError(cudaErrorStreamCaptureIsolation, "CAPTURE", stream.capture->fault);
    }
    append(stream.last, event.after);
}

void Queue::begin_capture(Stream& stream, cudaStreamCaptureMode mode) {
    if (stream.legacy)
        throw CudaError(cudaErrorStreamCaptureUnsupported, "CAPTURE",
                        "the default stream cannot be captured: use another stream");
    if (stream.capture)
        throw CudaError(cudaErrorIllegalState, "CAPTURE", "the stream is being captured already");
    auto capture = std::make_shared<Capture>();
    capture->origin = &stream;
    capture->mode = mode;
    captures_.push_back(capture);
    stream.capture = capture;
    stream.tail.clear();
}

std::unique_ptr<Graph> Queue::end_capture(Stream& stream) {
    const std::shared_ptr<Capture> capture = stream.capture;
    if (!capture) throw CudaError(cudaErrorIllegalState, "CAPTURE", "the stream is not being captured");
    if (capture->origin != &stream)
        throw CudaError(cudaErrorStreamCaptureUnmatched, "CAPTURE", "the capture began in another stream");
    const std::vector<int> ends = stream.tail;
    captures_.remove(capture);
    bool joined = true;
    for (const auto& [handle, other] : streams_) {
        if (other->capture != capture) continue;
        // Its last node must be one that something on the way to the origin's last node waits for.
        for (const int node : other->tail) {
            bool reached = std::find(ends.begin(), ends.end(), node) != ends.end();
            for (const Graph::Node& later : capture->graph.nodes)
                reached =
                    reached || std::find(later.after.begin(), later.after.end(), node) != later.after.end();
            joined = joined && reached;
        }
        other->capture.reset();
        other->tail.clear();
    }
    if (!capture->fault.empty())
        throw CudaError(cudaErrorStreamCaptureInvalidated, "CAPTURE",
                        "the capture is invalid: " + capture->fault);
    if (!joined)
        throw CudaError(cudaErrorStreamCaptureUnjoined, "CAPTURE",
                        "a stream that joined the capture has work the first stream does not wait for");
    return std::make_unique<Graph>(std::move(capture->graph));
}

void Queue::launch_graph(const Graph& graph, Stream& stream) {
    require_valid(stream);
    if (stream.capture) {  // the graph's nodes become nodes of the one being captured
        Graph& outer = stream.capture->graph;
        const int first = static_cast<int>(outer.nodes.size());
        for (Graph::Node node : graph.nodes) {
            for (int& earlier : node.after) earlier += first;
            node.after.insert(node.after.end(), stream.tail.begin(), stream.tail.end());
            outer.nodes.push_back(std::move(node));
        }
        for (int i = first; i < static_cast<int>(outer.nodes.size()); ++i) stream.tail.push_back(i);
        return;
    }
    const std::vector<OperationId> before = predecessors(stream);
    std::vector<OperationId> ids;
    for (const Graph::Node& node : graph.nodes) {
        std::vector<OperationId> after = before;
        for (const int earlier : node.after) after.push_back(ids[static_cast<size_t>(earlier)]);
        ids.push_back(enqueue(node.operation, std::move(after)));
    }
    append(stream.last, ids);
}

void Queue::forbid_in_capture(const char* what) {
    for (const auto& capture : captures_) {
        if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
        capture->fault = format("%s was called", what);
        throw CudaError(cudaErrorStreamCaptureUnsupported, "CAPTURE",
                        format("%s must not be called while a stream is being captured", what));
    }
}

void Queue::forbid_in_capture(const char* what, Stream& stream) {
    if (!stream.capture) return;
    stream.capture->fault = format("%s was called", what);
    throw CudaError(cudaErrorStreamCaptureUnsupported, "CAPTURE",
                    format("%s must not be called for a stream that is being captured", what));
}

void Queue::forget(const Module* module) {
    std::erase_if(pending_, [&](const Pending& pending) {
        return pending.operation.launch && pending.operation.launch->module == module;
    });
}

std::vector<Queue::Pending> Queue::take() {
    std::vector<Pending> all = std::move(pending_);
    pending_.clear();
    return all;
}

void Queue::reset() {
    pending_.clear();
    captures_.clear();
    for (auto* group : {&legacy_, &per_thread_}) group->clear();
    for (auto& [handle, stream] : streams_) {
        stream->capture.reset();
        stream->tail.clear();
        stream->last.clear();
    }
}

}  // namespace ptxsim
