// The bandwidth limit on a CPU: reads four arrays and writes three of them back, with the threads
// of a step.
#include <cstdint>

#include <omp.h>

extern "C" void read_four_write_three(float* a, const float* b, float* c, float* d,
                                      std::int64_t numel, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const std::int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
    const std::int64_t begin = numel / parts * part;
    const std::int64_t end = part + 1 == parts ? numel : begin + numel / parts;
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const float sum = a[i] + b[i] + c[i] + d[i];
      a[i] = sum;
      c[i] = sum;
      d[i] = sum;
    }
  }
}
