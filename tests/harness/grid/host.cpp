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

namespace {

// A block folds the numbers of its threads, in descending order of the blocks.
template <typename Number>
void run_folds(std::int64_t blocks, const Number& number,
               const std::function<void(std::int64_t, double)>& keep) {
  for (std::int64_t block = blocks; block-- > 0;) {
    double numbers[kSumThreads];
    for (int t = kSumThreads; t-- > 0;) numbers[t] = number(block, t);
    for (int width = kSumThreads / 2; width > 0; width /= 2) {
      for (int t = 0; t < width; ++t) numbers[t] += numbers[t + width];
    }
    keep(block, numbers[0]);
  }
}

template <typename G>
void run_sums(const SumArguments& a, std::int64_t blocks) {
  run_folds(
      blocks, [&](std::int64_t block, int t) { return sum_thread<G>(a, block, t); },
      [&](std::int64_t block, double sum) { a.sums[block] = sum; });
}

}  // namespace

void sum(const Queue&, const SegmentTypes& types, const SumArguments& arguments,
         std::int64_t blocks) {
  enqueue([=, gradient = types.of[role::grad]] {
    switch (gradient) {
      case DType::float64:
        return run_sums<double>(arguments, blocks);
      case DType::float32:
        return run_sums<float>(arguments, blocks);
      case DType::bfloat16:
        return run_sums<BFloat16>(arguments, blocks);
      case DType::float16:
        return run_sums<Half>(arguments, blocks);
    }
  });
}

void fold(const Queue&, const FoldArguments& arguments, std::int64_t blocks) {
  enqueue([=] {
    run_folds(
        blocks,
        [&](std::int64_t block, int t) {
          return fold_thread(arguments, row_of(arguments, block), t);
        },
        [&](std::int64_t block, double sum) { arguments.to[row_of(arguments, block).to] = sum; });
  });
}

void clip(const Queue&, const ClipArguments& arguments) {
  enqueue([=] { clip_thread(arguments); });
}

void round(const Queue&, const RoundArguments& arguments) {
  enqueue([=] {
    run_threads(arguments.num_rows, [&](std::int64_t i) { round_thread(arguments, i); });
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
