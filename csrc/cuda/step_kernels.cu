#include "step_kernels.h"

#include "fold_block.h"

namespace radam::cuda {
namespace {

// Threads that a multiprocessor must be able to hold at once, so many that no register spills.
template <typename P, typename G, bool draws>
constexpr int resident() {
  if (sizeof(P) == 8) return RADAM_RESIDENT / 2;
  constexpr bool has_copy = std::is_same_v<P, MasteredBFloat16> || std::is_same_v<P, MasteredHalf>;
  if (draws) return sizeof(G) == 8 ? RADAM_RESIDENT / 2 : RADAM_RESIDENT * 2 / 3;
  if (sizeof(G) == 8) {
    const bool has_master = has_copy || std::is_same_v<P, SplitBFloat16>;
    return has_master ? RADAM_RESIDENT * 2 / 3 : RADAM_RESIDENT * 5 / 6;
  }
  return has_copy ? RADAM_RESIDENT * 5 / 6 : RADAM_RESIDENT;
}

template <typename P, typename G, bool draws>
constexpr int kBlocks = resident<P, G, draws>() / kThreads;

template <typename P, typename G, typename M, bool amsgrad, bool draws>
__global__ void __launch_bounds__(kThreads, kBlocks<P, G, draws>)
    step_kernel(const __grid_constant__ StepArguments arguments) {
  step_thread<Storage<P, G, M, amsgrad, draws>>(arguments, blockIdx.x,
                                                static_cast<int>(threadIdx.x));
}

// Also sums the squares of the differences that it makes. It needs more registers.
template <typename P, typename G, typename M, bool amsgrad, bool draws>
__global__ void __launch_bounds__(kThreads, kBlocks<P, G, draws> * 2 / 3)
    tracked_kernel(const __grid_constant__ StepArguments arguments) {
  using T = Arithmetic<P>;
  alignas(kWord) __shared__ unsigned char memory[kSumChunk * sizeof(T)];
  T* const differences = reinterpret_cast<T*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const int numel = step_thread<Storage<P, G, M, amsgrad, draws>, true>(arguments, blockIdx.x,
                                                                        thread, differences);
  __syncthreads();
  const double folded = difference_thread(differences, numel, thread);
  __syncthreads();
  const double sum = fold_block(folded, thread, reinterpret_cast<double*>(memory));
  if (thread == 0) arguments.sums[blockIdx.x] = sum;
}

template <typename P, typename G, typename M, bool amsgrad, bool draws, bool tracked>
struct Kernel {
  static StepKernel get() {
    if constexpr (!tracked) {
      return step_kernel<P, G, M, amsgrad, draws>;
    } else if constexpr (kTracks) {
      return tracked_kernel<P, G, M, amsgrad, draws>;
    } else {
      return nullptr;
    }
  }
};

}  // namespace

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool tracked) {
  return choose_step_kernel<P, Kernel>(types, tracked);
}

template StepKernel step_kernel_for<RADAM_PARAM>(const SegmentTypes&, bool);

}  // namespace radam::cuda
