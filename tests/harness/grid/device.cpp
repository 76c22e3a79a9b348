// The device of both host builds of the CUDA backend: CPU memory, always available.
#include "cuda/kernels.h"

namespace radam::cuda {

bool is_served(const dlpack::Device& device) {
  return device.type == dlpack::kCPU;
}

std::optional<std::string> unavailable() {
  return std::nullopt;
}

std::optional<std::string> unsupported(int) {
  return std::nullopt;
}

}  // namespace radam::cuda
