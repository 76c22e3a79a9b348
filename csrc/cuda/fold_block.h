// How the threads of a block fold their numbers on a device.
#pragma once

#include "sums.h"

namespace radam::cuda {

// Returns the result to thread 0. numbers: shared memory for kSumThreads numbers, which no thread
// accesses any more.
__device__ __forceinline__ double fold_block(double number, int thread, double* numbers) {
  numbers[thread] = number;
  for (int width = kSumThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread < width) numbers[thread] += numbers[thread + width];
  }
  return numbers[thread];
}

}  // namespace radam::cuda
