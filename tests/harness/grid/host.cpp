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

void step(const Queue&, const SegmentTypes& types, const StepArguments& arguments,
          std::int64_t blocks) {
  enqueue([=, kernel = step_kernel_for(types, arguments.sums != nullptr)] {
    the_blocks = blocks;
    kernel(arguments);
  });
}

namespace {

template <typename G>
void run_sums(const StepArguments& a, std::int64_t blocks) {
  run_folds(
      blocks,
      [&](std::int64_t block, double* numbers) {
        for (int t = kSumThreads; t-- > 0;) numbers[t] = sum_thread<G>(a, block, t);
      },
      [&](std::int64_t block, double sum) { a.sums[block] = sum; });
}

}  // namespace

void sum(const Queue&, const SegmentTypes& types, const StepArguments& arguments,
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
      case DType::int16:
        return;
    }
  });
}

void fold(const Queue&, const FoldArguments& arguments, std::int64_t blocks) {
  enqueue([=] {
    run_folds(
        blocks,
        [&](std::int64_t block, double* numbers) {
          const FoldRow row = row_of(arguments, block);
          for (int t = kSumThreads; t-- > 0;) numbers[t] = fold_thread(arguments, row, t);
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

std::int64_t num_blocks() {
  return the_blocks;
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

Fault fault() {
  return the_fault;
}

}  // namespace radam::cuda
