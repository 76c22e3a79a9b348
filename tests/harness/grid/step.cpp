#include "cuda/step_kernels.h"

#include "host.h"

namespace radam::cuda {
namespace {

template <typename P, typename G, typename M, bool amsgrad>
void step_kernel(StepArguments arguments) {
  run_blocks(step_thread<Storage<P, G, M, amsgrad>>, arguments);
}

template <typename P, typename G, typename M, bool amsgrad>
struct Kernel {
  static StepKernel get() { return step_kernel<P, G, M, amsgrad>; }
};

}  // namespace

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool amsgrad) {
  return choose_step_kernel<P, Kernel>(types, amsgrad);
}

template StepKernel step_kernel_for<RADAM_PARAM>(const SegmentTypes&, bool);

}  // namespace radam::cuda
