// The step's kernels for one dtype of the parameter; step.cu is built once for each.
#pragma once

#include <cuda_runtime.h>

#include "grid.h"

namespace radam::cuda {

template <typename P>
cudaError_t launch_step(cudaStream_t stream, const SegmentTypes& types, bool amsgrad,
                        const StepArguments& arguments, std::int64_t blocks);

}  // namespace radam::cuda
