// Access to the CUDA grid on the host for tests.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/grid.h"

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

// Calls `thread` for every block and thread of the step kernel.
void run_blocks(void (*thread)(const StepArguments&, std::int64_t, int),
                const StepArguments& arguments);

}  // namespace radam::cuda
