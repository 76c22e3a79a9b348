// What a launch needs of the device: three kernels. kernels.cu runs them with CUDA; the tests run
// every block and thread in loops on the host. A call enqueues and does not wait; it throws with
// CUDA's own text.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "../dlpack.h"
#include "step.h"

namespace radam::cuda {

struct Queue {
  std::int32_t device;
  void* stream;
};

bool is_served(const dlpack::Device& device);

// Why there is no device, or nothing.
std::optional<std::string> missing();

// Why no kernel can run on a device, or nothing. Starts the device.
std::optional<std::string> unusable(int device);

void upload(const Queue& queue, const UploadArguments& arguments);
void prologue(const Queue& queue, const PrologueArguments& arguments);
void step(const Queue& queue, const SegmentTypes& types, bool amsgrad,
          const StepArguments& arguments, std::int64_t blocks);

inline StepKernel step_kernel_for(const SegmentTypes& types, bool amsgrad) {
  switch (types.of[role::param]) {
    case DType::float64:
      return step_kernel_for<double>(types, amsgrad);
    case DType::float32:
      return step_kernel_for<float>(types, amsgrad);
    case DType::bfloat16:
      return step_kernel_for<BFloat16>(types, amsgrad);
    case DType::float16:
      return step_kernel_for<Half>(types, amsgrad);
  }
  throw std::invalid_argument("unknown dtype");
}

}  // namespace radam::cuda
