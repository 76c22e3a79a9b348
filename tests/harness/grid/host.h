// Access to the CUDA grid on the host for tests.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/sums.h"

namespace radam::cuda {

// Like torch.cuda.CUDAGraph: kernels between begin() and end() are kept instead of run.
class HostGraph {
 public:
  HostGraph() = default;
  HostGraph(const HostGraph&) = delete;
  HostGraph& operator=(const HostGraph&) = delete;

  void begin();
  void end();
  void replay() const;

 private:
  std::vector<std::function<void()>> kernels_;
};

// Kernels enqueued so far.
std::int64_t launches();

// A fault in every kernel, for tests that must notice it.
enum class Fault { none, one_thread_less, last_block_left_out, a_thread_twice };
void set_fault(Fault fault);

// The blocks of the step kernel that runs.
std::int64_t num_blocks();

// Blocks that fold the numbers of their threads, in descending order: fill(block, numbers) computes
// the numbers of a block, keep(block, sum) takes the result.
template <typename Fill, typename Keep>
void run_folds(std::int64_t blocks, const Fill& fill, const Keep& keep) {
  for (std::int64_t block = blocks; block-- > 0;) {
    double numbers[kSumThreads];
    fill(block, numbers);
    for (int width = kSumThreads / 2; width > 0; width /= 2) {
      for (int t = 0; t < width; ++t) numbers[t] += numbers[t + width];
    }
    keep(block, numbers[0]);
  }
}

Fault fault();

// Calls thread(block, number) for every block and thread of the step kernel.
template <typename Thread>
void run_blocks(const Thread& thread) {
  const int threads = fault() == Fault::one_thread_less ? kThreads - 1 : kThreads;
  for (std::int64_t block = num_blocks(); block-- > 0;) {
    if (fault() == Fault::last_block_left_out && block == num_blocks() - 1) continue;
    for (int t = threads; t-- > 0;) thread(block, t);
    if (fault() == Fault::a_thread_twice) thread(block, 0);
  }
}

}  // namespace radam::cuda
