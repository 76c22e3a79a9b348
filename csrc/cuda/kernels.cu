#include "kernels.h"

#include "fold_block.h"

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

template <typename G>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const __grid_constant__ StepArguments arguments) {
  __shared__ double numbers[kSumThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const double sum = fold_block(sum_thread<G>(arguments, blockIdx.x, thread), thread, numbers);
  if (thread == 0) arguments.sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kSumThreads)
    fold_kernel(const __grid_constant__ FoldArguments arguments) {
  __shared__ double numbers[kSumThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const FoldRow row = row_of(arguments, blockIdx.x);
  const double sum = fold_block(fold_thread(arguments, row, thread), thread, numbers);
  if (thread == 0) arguments.to[row.to] = sum;
}

__global__ void __launch_bounds__(1) clip_kernel(const __grid_constant__ ClipArguments arguments) {
  clip_thread(arguments);
}

__global__ void __launch_bounds__(kThreads)
    round_kernel(const __grid_constant__ RoundArguments arguments) {
  round_thread(arguments, static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

StepKernel sum_kernel_for(DType gradient) {
  switch (gradient) {
    case DType::float64:
      return sum_kernel<double>;
    case DType::float32:
      return sum_kernel<float>;
    case DType::bfloat16:
      return sum_kernel<BFloat16>;
    case DType::float16:
      return sum_kernel<Half>;
    case DType::int16:
      break;
  }
  throw std::invalid_argument("unknown dtype");
}

template <typename Arguments>
void run(void (*kernel)(Arguments), const Queue& queue, const Arguments& arguments,
         std::int64_t blocks, int threads, const char* what) {
  if (blocks > std::numeric_limits<int>::max()) {
    throw std::runtime_error(std::string(what) + " needs " + std::to_string(blocks) +
                             " blocks, expected at most 2^31 - 1");
  }
  const DeviceGuard guard(queue.device);
  void* packed[] = {const_cast<Arguments*>(&arguments)};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), packed, 0,
                         static_cast<cudaStream_t>(queue.stream)),
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
  run(&upload_kernel, queue, arguments, blocks_for(arguments.num_words), kThreads,
      "the upload of a table");
}

void prologue(const Queue& queue, const PrologueArguments& arguments) {
  run(&prologue_kernel, queue, arguments, blocks_for(arguments.num_segments), kThreads,
      "the prologue of a step");
}

void step(const Queue& queue, const SegmentTypes& types, const StepArguments& arguments,
          std::int64_t blocks) {
  const StepKernel kernel = step_kernel_for(types, arguments.sums != nullptr);
  if (kernel == nullptr) throw std::runtime_error("this build has no such kernel");
  run(kernel, queue, arguments, blocks, kThreads, "a step");
}

void sum(const Queue& queue, const SegmentTypes& types, const StepArguments& arguments,
         std::int64_t blocks) {
  run(sum_kernel_for(types.of[role::grad]), queue, arguments, blocks, kSumThreads, "a norm");
}

void fold(const Queue& queue, const FoldArguments& arguments, std::int64_t blocks) {
  run(&fold_kernel, queue, arguments, blocks, kSumThreads, "a norm");
}

void clip(const Queue& queue, const ClipArguments& arguments) {
  run(&clip_kernel, queue, arguments, 1, 1, "clipping");
}

void round(const Queue& queue, const RoundArguments& arguments) {
  run(&round_kernel, queue, arguments, blocks_for(arguments.num_rows), kThreads, "clipping");
}

}  // namespace radam::cuda
