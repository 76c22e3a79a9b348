#include "step_kernels.h"

namespace radam::cuda {
namespace {

// Blocks that a multiprocessor must be able to hold at once. float64 needs more registers.
template <typename P, typename G>
constexpr int kBlocks = (sizeof(P) == 8   ? RADAM_RESIDENT / 2
                         : sizeof(G) == 8 ? RADAM_RESIDENT * 5 / 6
                                          : RADAM_RESIDENT) /
                        kThreads;

template <typename P, typename G, typename M, bool amsgrad>
__global__ void __launch_bounds__(kThreads, kBlocks<P, G>)
    step_kernel(const __grid_constant__ StepArguments arguments) {
  step_thread<Storage<P, G, M, amsgrad>>(arguments, blockIdx.x, static_cast<int>(threadIdx.x));
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
