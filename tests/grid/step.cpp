#include "cuda/step.h"

#include "host.h"

namespace radam::cuda {
namespace {

template <typename P, typename G, typename M, bool amsgrad>
void step_kernel(StepArguments arguments) {
  run_blocks(step_thread<Storage<P, G, M, amsgrad>>, arguments);
}

}  // namespace

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool amsgrad) {
  return for_types<P>(types, amsgrad, [](auto grad, auto moment, auto with_amsgrad) -> StepKernel {
    using G = typename decltype(grad)::type;
    using M = typename decltype(moment)::type;
    return step_kernel<P, G, M, decltype(with_amsgrad)::value>;
  });
}

template StepKernel step_kernel_for<RADAM_PARAM>(const SegmentTypes&, bool);

}  // namespace radam::cuda
