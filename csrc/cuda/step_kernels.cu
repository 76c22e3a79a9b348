#include "step_kernels.h"

#include "fold_block.h"

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

// Also sums the squares of the differences that it makes. It needs more registers.
template <typename P, typename G, typename M, bool amsgrad>
__global__ void __launch_bounds__(kThreads, kBlocks<P, G> * 2 / 3)
    tracked_kernel(const __grid_constant__ StepArguments arguments) {
  using T = Arithmetic<P>;
  alignas(kWord) __shared__ unsigned char memory[kSumChunk * sizeof(T)];
  T* const differences = reinterpret_cast<T*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const int numel =
      step_thread<Storage<P, G, M, amsgrad>, true>(arguments, blockIdx.x, thread, differences);
  __syncthreads();
  const double folded = difference_thread(differences, numel, thread);
  __syncthreads();
  const double sum = fold_block(folded, thread, reinterpret_cast<double*>(memory));
  if (thread == 0) arguments.sums[blockIdx.x] = sum;
}

template <typename P, typename G, typename M, bool amsgrad, bool tracked>
struct Kernel {
  static StepKernel get() {
    if constexpr (!tracked) {
      return step_kernel<P, G, M, amsgrad>;
    } else if constexpr (kTracks) {
      return tracked_kernel<P, G, M, amsgrad>;
    } else {
      return nullptr;
    }
  }
};

}  // namespace

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool amsgrad, bool tracked) {
  return choose_step_kernel<P, Kernel>(types, amsgrad, tracked);
}

template StepKernel step_kernel_for<RADAM_PARAM>(const SegmentTypes&, bool, bool);

}  // namespace radam::cuda
