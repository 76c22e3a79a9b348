// The bandwidth limit on a GPU: reads four arrays and writes three of them back, in 16-byte words.
// The values stay the same, so it can run on the tensors of an optimizer.
#include <cstdint>

#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 256;

// x for every finite y; the compiler may not drop y, which could be infinite.
__device__ float keep(float x, float y) {
  return x + 0.0f * y;
}

__device__ float4 keep(float4 x, float4 y) {
  return make_float4(keep(x.x, y.x), keep(x.y, y.y), keep(x.z, y.z), keep(x.w, y.w));
}

__global__ void move(float4* a, const float4* b, float4* c, float4* d, std::int64_t words) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= words) return;
  const float4 p = a[i], g = b[i], m = c[i], v = d[i];
  a[i] = keep(p, g);
  c[i] = keep(m, g);
  d[i] = keep(v, g);
}

}  // namespace

extern "C" int read_four_write_three(float* a, const float* b, float* c, float* d,
                                     std::int64_t numel, void* stream) {
  const std::int64_t words = numel / 4;
  move<<<static_cast<unsigned>((words + kThreads - 1) / kThreads), kThreads, 0,
         static_cast<cudaStream_t>(stream)>>>(
      reinterpret_cast<float4*>(a), reinterpret_cast<const float4*>(b),
      reinterpret_cast<float4*>(c), reinterpret_cast<float4*>(d), words);
  return static_cast<int>(cudaGetLastError());
}
