// What the tests ask of the host's engine besides cuda/engine.h.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cuda/grid.h"

namespace radam::cuda {

// As torch.cuda.CUDAGraph: launches between begin() and end() are kept, not run.
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

// What a launch is to do wrongly, so that tests show that they would notice.
enum class Fault { none, one_thread_less, last_block_left_out, a_thread_twice };
void set_fault(Fault fault);

// Every thread of every block; step.cpp is built once for each dtype of the parameter.
template <typename P>
void run_blocks(const SegmentTypes& types, bool amsgrad, const StepArguments& arguments,
                std::int64_t blocks, Fault fault);

}  // namespace radam::cuda
