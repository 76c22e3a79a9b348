// The fold of a chunk of squares (see ../sums.h), fast. It is compiled once per instruction set.
#pragma once

#include "step.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Sums that are taken at once: each of eight numbers that lie as far apart.
constexpr std::int64_t kLanes = kSumChunk / 8;

// As fold(), without loops over fewer numbers than a register holds.
template <std::int64_t width>
double fold_lanes(double* sums) {
  if constexpr (width == 0) {
    return sums[0];
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) sums[i] += sums[i + width];
    return fold_lanes<width / 2>(sums);
  }
}

// The sum of the squares of number(i) for i < numel, which is at most kSumChunk.
template <typename Number>
double fold_squares(std::int64_t numel, const Number& number) {
  const auto square = [&](std::int64_t i) {
    const auto wide = static_cast<double>(number(i));
    return wide * wide;
  };
  if (numel < kSumChunk) {
    alignas(64) double squares[kSumChunk];
#pragma omp simd
    for (std::int64_t i = 0; i < numel; ++i) squares[i] = square(i);
    return fold(squares, numel);
  }
  alignas(64) double sums[kLanes];
#pragma omp simd
  for (std::int64_t i = 0; i < kLanes; ++i) {
    sums[i] =
        ((square(i) + square(i + 4 * kLanes)) + (square(i + 2 * kLanes) + square(i + 6 * kLanes))) +
        ((square(i + kLanes) + square(i + 5 * kLanes)) +
         (square(i + 3 * kLanes) + square(i + 7 * kLanes)));
  }
  return fold_lanes<kLanes / 2>(sums);
}

}  // namespace
}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
