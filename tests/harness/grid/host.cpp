// Runs the CUDA kernels on the host: loops over all blocks and threads, in descending order. A
// captured kernel is kept with its arguments by value, as in a CUDA graph, and runs at each replay.
#include "host.h"

#include <stdexcept>
#include <utility>

#include "cuda/kernels.h"

namespace radam::cuda {
namespace {

using Kernel = std::function<void()>;

std::vector<Kernel>* the_capture = nullptr;
std::int64_t the_launches = 0;
std::int64_t the_blocks = 0;  // of the step kernel that runs
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
void run_threads(std::int64_t num_items, const Thread& thread) {
  for (std::int64_t i = (num_items + kThreads - 1) / kThreads * kThreads; i-- > 0;) thread(i);
}

}  // namespace

void upload(const Queue&, const UploadArguments& arguments) {
  enqueue([=] {
    run_threads(arguments.num_words, [&](std::int64_t i) { upload_thread(arguments, i); });
  });
}

void prologue(const Queue&, const PrologueArguments& arguments) {
  enqueue([=] {
    run_threads(arguments.num_segments, [&](std::int64_t i) { prologue_thread(arguments, i); });
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
