// The machine's limit for an optimizer step: read four arrays and write three of them back, nothing
// else, with the same threads. A flat range in one call.
#include <cstdint>

#include <omp.h>

extern "C" void read_four_write_three(float* a, const float* b, float* c, float* d,
                                      std::int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const std::int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
    const std::int64_t begin = count / parts * part;
    const std::int64_t end = part + 1 == parts ? count : begin + count / parts;
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const float sum = a[i] + b[i] + c[i] + d[i];
      a[i] = sum;
      c[i] = sum;
      d[i] = sum;
    }
  }
}
