// The CUDA backend's kernels on the host: every block and thread of a launch, in loops, the last
// first. A captured launch is kept with its arguments by value and runs when the graph is replayed,
// as in a CUDA graph.
#include "host.h"

#include <stdexcept>
#include <utility>

#include "cuda/kernels.h"

namespace radam::cuda {
namespace {

using Kernel = std::function<void()>;

std::vector<Kernel>* the_capture = nullptr;
std::int64_t the_launches = 0;
std::int64_t the_blocks = 0;  // of the step's kernel that runs
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
  enqueue([=, kernel = step_kernel_for(types, amsgrad)] {
    the_blocks = blocks;
    kernel(arguments);
  });
}

void run_blocks(void (*thread)(const StepArguments&, std::int64_t, int),
                const StepArguments& arguments) {
  const int threads = the_fault == Fault::one_thread_less ? kThreads - 1 : kThreads;
  for (std::int64_t block = the_blocks; block-- > 0;) {
    if (the_fault == Fault::last_block_left_out && block == the_blocks - 1) continue;
    for (int t = threads; t-- > 0;) thread(arguments, block, t);
    if (the_fault == Fault::a_thread_twice) thread(arguments, block, 0);
  }
}

void HostGraph::begin() {
  if (the_capture != nullptr) throw std::logic_error("a graph is being captured already");
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
