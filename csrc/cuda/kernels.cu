#include "kernels.h"

#include <limits>
#include <stdexcept>

#include <cuda_runtime.h>

namespace radam::cuda {
namespace {

std::optional<std::string> text_of(cudaError_t error) {
  if (error == cudaSuccess) return std::nullopt;
  cudaGetLastError();  // so that the next call does not report it again
  return cudaGetErrorString(error);
}

void check(cudaError_t error, const char* what) {
  if (const auto text = text_of(error)) {
    throw std::runtime_error(std::string("CUDA error in ") + what + ": " + *text);
  }
}

// Makes a device current within a scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device == previous_) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

__global__ void __launch_bounds__(kThreads)
    upload_kernel(const __grid_constant__ UploadArguments arguments) {
  upload_thread(arguments, static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

__global__ void __launch_bounds__(kThreads)
    prologue_kernel(const __grid_constant__ PrologueArguments arguments) {
  prologue_thread(arguments, static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

template <typename Arguments>
void run(void (*kernel)(Arguments), const Queue& queue, const Arguments& arguments,
         std::int64_t blocks, const char* what) {
  if (blocks > std::numeric_limits<int>::max()) {
    throw std::runtime_error(std::string(what) + " needs " + std::to_string(blocks) +
                             " blocks, expected at most 2^31 - 1");
  }
  const DeviceGuard guard(queue.device);
  void* packed[] = {const_cast<Arguments*>(&arguments)};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(kThreads), packed, 0, static_cast<cudaStream_t>(queue.stream)),
        what);
}

// Blocks for one thread per item.
std::int64_t blocks_for(std::int64_t num_items) {
  return (num_items + kThreads - 1) / kThreads;
}

}  // namespace

bool is_served(const dlpack::Device& device) {
  return device.type == dlpack::kCUDA;
}

std::optional<std::string> unavailable() {
  int count = 0;
  return text_of(cudaGetDeviceCount(&count));
}

std::optional<std::string> unsupported(int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  return text_of(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&upload_kernel)));
}

void upload(const Queue& queue, const UploadArguments& arguments) {
  run(&upload_kernel, queue, arguments, blocks_for(arguments.num_words), "the upload of a table");
}

void prologue(const Queue& queue, const PrologueArguments& arguments) {
  run(&prologue_kernel, queue, arguments, blocks_for(arguments.num_segments),
      "the prologue of a step");
}

void step(const Queue& queue, const SegmentTypes& types, bool amsgrad,
          const StepArguments& arguments, std::int64_t blocks) {
  run(step_kernel_for(types, amsgrad), queue, arguments, blocks, "a step");
}

}  // namespace radam::cuda
