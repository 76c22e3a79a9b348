// The kernels of a launch. kernels.cu runs them with CUDA; the tests run every block and
// thread in loops on the host. Each call enqueues a kernel and does not wait for it. An error is
// thrown with CUDA's text.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "../dlpack.h"
#include "step_kernels.h"
#include "sums.h"

namespace radam::cuda {

struct Queue {
  std::int32_t device;
  void* stream;
};

bool is_served(const dlpack::Device& device);

// The reason why there is no device; nothing if there is one.
std::optional<std::string> unavailable();

// The reason why a device cannot run the kernels; nothing if it can. Initialises the device.
std::optional<std::string> unsupported(int device);

void upload(const Queue& queue, const UploadArguments& arguments);
void prologue(const Queue& queue, const PrologueArguments& arguments);
// A step with `sums` in its arguments sums the squares of its differences.
void step(const Queue& queue, const SegmentTypes& types, const StepArguments& arguments,
          std::int64_t blocks);

// The kernels of the norm. types: those of the launch whose gradients are summed.
void sum(const Queue& queue, const SegmentTypes& types, const StepArguments& arguments,
         std::int64_t blocks);
void fold(const Queue& queue, const FoldArguments& arguments, std::int64_t blocks);
void clip(const Queue& queue, const ClipArguments& arguments);
void round(const Queue& queue, const RoundArguments& arguments);

inline StepKernel step_kernel_for(const SegmentTypes& types, bool tracked) {
  if (types.has[role::param_remainder]) return step_kernel_for<SplitBFloat16>(types, tracked);
  const bool has_master = types.has[role::master_param];
  switch (types.of[role::param]) {
    case DType::float64:
      return step_kernel_for<double>(types, tracked);
    case DType::float32:
      return step_kernel_for<float>(types, tracked);
    case DType::bfloat16:
      return has_master ? step_kernel_for<MasteredBFloat16>(types, tracked)
                        : step_kernel_for<BFloat16>(types, tracked);
    case DType::float16:
      return has_master ? step_kernel_for<MasteredHalf>(types, tracked)
                        : step_kernel_for<Half>(types, tracked);
    case DType::int16:
      break;
  }
  throw std::invalid_argument("unknown dtype");
}

}  // namespace radam::cuda
