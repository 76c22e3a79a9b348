#include "engine.h"

#include <limits>
#include <stdexcept>

#include "step.h"

namespace radam::cuda {
namespace {

std::optional<std::string> text_of(cudaError_t error) {
  if (error == cudaSuccess) return std::nullopt;
  cudaGetLastError();  // not to be met again by the next call
  return cudaGetErrorString(error);
}

void check(cudaError_t error, const char* what) {
  if (const auto text = text_of(error)) {
    throw std::runtime_error(std::string("CUDA error in ") + what + ": " + *text);
  }
}

// The queue's device as the current one, for as long as this lives.
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

cudaStream_t stream_of(const Queue& queue) {
  return static_cast<cudaStream_t>(queue.stream);
}

// One thread for each of `count` items.
template <typename Arguments>
void launch(void (*kernel)(Arguments), const Queue& queue, const Arguments& arguments,
            std::int64_t count, const char* what) {
  const DeviceGuard guard(queue.device);
  void* packed[] = {const_cast<Arguments*>(&arguments)};
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kThreads),
                         packed, 0, stream_of(queue)),
        what);
}

}  // namespace

bool is_served(const dlpack::Device& device) {
  return device.type == dlpack::kCUDA;
}

std::optional<std::string> missing() {
  int count = 0;
  return text_of(cudaGetDeviceCount(&count));
}

std::optional<std::string> unusable(int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  return text_of(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&upload_kernel)));
}

void upload(const Queue& queue, const UploadArguments& arguments) {
  launch(&upload_kernel, queue, arguments, arguments.count, "the upload of a table");
}

void prologue(const Queue& queue, const PrologueArguments& arguments) {
  launch(&prologue_kernel, queue, arguments, arguments.count, "the prologue of a step");
}

void step(const Queue& queue, const SegmentTypes& types, bool amsgrad,
          const StepArguments& arguments, std::int64_t blocks) {
  if (blocks > std::numeric_limits<int>::max()) {
    throw std::runtime_error("a launch takes at most 2^31 - 1 blocks");
  }
  const DeviceGuard guard(queue.device);
  const auto launch_for = [&] {
    switch (types.param) {
      case DType::float64:
        return launch_step<double>;
      case DType::float32:
        return launch_step<float>;
      case DType::bfloat16:
        return launch_step<BFloat16>;
      case DType::float16:
        return launch_step<Half>;
    }
    throw std::invalid_argument("unknown dtype");
  }();
  check(launch_for(stream_of(queue), types, amsgrad, arguments, blocks), "the launch of a step");
}

}  // namespace radam::cuda
