// What a launch asks of the device: three kernels. engine.cu serves it with CUDA; the tests have
// one that runs every block and thread in loops on the host. Everything is enqueued, nothing waits,
// and an error is thrown with CUDA's own text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "../dlpack.h"
#include "grid.h"

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

}  // namespace radam::cuda
