// The CUDA engine's kernels on the host: every block and thread of a launch, in loops, the last
// first. A captured launch is kept with its arguments by value and run when the graph is replayed,
// as a CUDA graph does.
#include "cuda/engine.h"

#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "engine.h"

namespace radam::cuda {
namespace {

using Kernel = std::function<void()>;

std::vector<Kernel>* the_capture = nullptr;
std::int64_t the_launches = 0;
Fault the_fault = Fault::none;

void enqueue(Kernel kernel) {
  ++the_launches;
  if (the_capture != nullptr) {
    the_capture->push_back(std::move(kernel));
  } else {
    kernel();
  }
}

template <typename Thread>
void run_threads(std::int64_t count, const Thread& thread) {
  for (std::int64_t i = (count + kThreads - 1) / kThreads * kThreads; i-- > 0;) thread(i);
}

}  // namespace

bool is_served(const dlpack::Device& device) {
  return device.type == dlpack::kCPU;
}

std::optional<std::string> missing() {
  return std::nullopt;
}

std::optional<std::string> unusable(int) {
  return std::nullopt;
}

void upload(const Queue&, const UploadArguments& arguments) {
  enqueue(
      [=] { run_threads(arguments.count, [&](std::int64_t i) { upload_thread(arguments, i); }); });
}

void prologue(const Queue&, const PrologueArguments& arguments) {
  enqueue([=] {
    run_threads(arguments.count, [&](std::int64_t i) { prologue_thread(arguments, i); });
  });
}

void step(const Queue&, const SegmentTypes& types, bool amsgrad, const StepArguments& arguments,
          std::int64_t blocks) {
  enqueue([=] {
    switch (types.param) {
      case DType::float64:
        return run_blocks<double>(types, amsgrad, arguments, blocks, the_fault);
      case DType::float32:
        return run_blocks<float>(types, amsgrad, arguments, blocks, the_fault);
      case DType::bfloat16:
        return run_blocks<BFloat16>(types, amsgrad, arguments, blocks, the_fault);
      case DType::float16:
        return run_blocks<Half>(types, amsgrad, arguments, blocks, the_fault);
    }
  });
}

void HostGraph::begin() {
  if (the_capture != nullptr) throw std::logic_error("a capture is under way");
  the_capture = &kernels_;
}

void HostGraph::end() {
  the_capture = nullptr;
}

void HostGraph::replay() const {
  for (const Kernel& kernel : kernels_) kernel();
}

std::int64_t launches() {
  return the_launches;
}

void set_fault(Fault fault) {
  the_fault = fault;
}

}  // namespace radam::cuda
