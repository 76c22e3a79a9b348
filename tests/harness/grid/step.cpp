#include "cuda/step_kernels.h"

#include "host.h"

namespace radam::cuda {
namespace {

template <typename P, typename G, typename M, bool amsgrad, bool draws>
void step_kernel(StepArguments arguments) {
  run_blocks([&](std::int64_t block, int t) {
    step_thread<Storage<P, G, M, amsgrad, draws>>(arguments, block, t);
  });
}

template <typename P, typename G, typename M, bool amsgrad, bool draws>
void tracked_kernel(StepArguments arguments) {
  const auto fill = [&](std::int64_t block, double* numbers) {
    Arithmetic<P> differences[kSumChunk];
    int numel = 0;
    for (int t = kThreads; t-- > 0;) {
      numel = step_thread<Storage<P, G, M, amsgrad, draws>, true>(arguments, block, t, differences);
    }
    for (int t = kSumThreads; t-- > 0;) numbers[t] = difference_thread(differences, numel, t);
  };
  run_folds(num_blocks(), fill,
            [&](std::int64_t block, double sum) { arguments.sums[block] = sum; });
}

template <typename P, typename G, typename M, bool amsgrad, bool draws, bool tracked>
struct Kernel {
  static StepKernel get() {
    return tracked ? tracked_kernel<P, G, M, amsgrad, draws> : step_kernel<P, G, M, amsgrad, draws>;
  }
};

}  // namespace

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool tracked) {
  return choose_step_kernel<P, Kernel>(types, tracked);
}

template StepKernel step_kernel_for<RADAM_PARAM>(const SegmentTypes&, bool);

}  // namespace radam::cuda
