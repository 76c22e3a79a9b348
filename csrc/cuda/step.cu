#include "step.h"

namespace radam::cuda {
namespace {

// Blocks that a multiprocessor has to hold at once: the most at which no register spills.
template <typename P, typename G>
constexpr int kBlocks = sizeof(P) == 8   ? 3
                        : sizeof(G) == 8 ? 5
                                         : 6;

template <typename P, typename G, typename M, bool amsgrad>
__global__ void __launch_bounds__(kThreads, kBlocks<P, G>)
    step_kernel(const __grid_constant__ StepArguments arguments) {
  step_thread<Storage<P, G, M, amsgrad>>(arguments, blockIdx.x, static_cast<int>(threadIdx.x));
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
