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
  step_thread<P, G, M, amsgrad>(arguments, blockIdx.x, static_cast<int>(threadIdx.x));
}

}  // namespace

template <typename P>
cudaError_t launch_step(cudaStream_t stream, const SegmentTypes& types, bool amsgrad,
                        const StepArguments& arguments, std::int64_t blocks) {
  return for_types<P>(types, amsgrad, [&](auto grad, auto moment, auto with_amsgrad) {
    using G = typename decltype(grad)::type;
    using M = typename decltype(moment)::type;
    void (*const kernel)(StepArguments) = step_kernel<P, G, M, decltype(with_amsgrad)::value>;
    void* packed[] = {const_cast<StepArguments*>(&arguments)};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel),
                            dim3(static_cast<unsigned>(blocks)), dim3(kThreads), packed, 0, stream);
  });
}

template cudaError_t launch_step<RADAM_PARAM>(cudaStream_t, const SegmentTypes&, bool,
                                              const StepArguments&, std::int64_t);

}  // namespace radam::cuda
