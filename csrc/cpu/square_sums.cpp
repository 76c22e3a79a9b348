// The sums of squares of gradients, one for each chunk (see sums.h). It is built once per
// instruction set, like the step.
#include "step.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Sums that are taken at once: each of eight numbers that lie as far apart.
constexpr std::int64_t kLanes = kSumChunk / 8;
// Distance of a prefetch in chunks. Without prefetches, the memory is read 30 % slower.
constexpr std::int64_t kAhead = 2;

template <typename Stored>
double square(Stored x) {
  const auto wide = static_cast<double>(load(x));
  return wide * wide;
}

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

template <typename Stored>
double sum_whole(const Stored* x) {
  alignas(64) double sums[kLanes];
  constexpr std::int64_t bytes = kSumChunk * sizeof(Stored);
  for (std::int64_t line = 0; line < bytes; line += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(x) + line + kAhead * bytes);
  }
#pragma omp simd
  for (std::int64_t i = 0; i < kLanes; ++i) {
    const Stored* const at = x + i;
    sums[i] = ((square(at[0]) + square(at[4 * kLanes])) +
               (square(at[2 * kLanes]) + square(at[6 * kLanes]))) +
              ((square(at[kLanes]) + square(at[5 * kLanes])) +
               (square(at[3 * kLanes]) + square(at[7 * kLanes])));
  }
  return fold_lanes<kLanes / 2>(sums);
}

template <typename Stored>
double sum_chunk(const void* gradient, std::int64_t offset, std::int64_t numel) {
  const Stored* const x = static_cast<const Stored*>(gradient) + offset;
  if (numel - offset >= kSumChunk) return sum_whole(x);
  alignas(64) double squares[kSumChunk];
  for (std::int64_t i = 0; i < numel - offset; ++i) squares[i] = square(x[i]);
  return fold(squares, numel - offset);
}

template <typename Stored>
void sum_chunks_of(const SumTables& tables, std::int64_t begin, std::int64_t end) {
  const auto* const firsts = tables.first_chunks;
  std::int64_t low = 0, high = tables.num_segments;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (firsts[middle] <= begin ? low : high) = middle;
  }
  for (std::int64_t chunk = begin; chunk < end; ++chunk) {
    while (low + 1 < tables.num_segments && firsts[low + 1] <= chunk) ++low;
    const Segment& s = tables.segments[low];
    const std::int64_t offset = (chunk - firsts[low]) * kSumChunk;
    tables.sums[chunk] = sum_chunk<Stored>(s.at[role::grad], offset, s.numel);
  }
}

}  // namespace

void sum_range(const SumTables& tables, std::int64_t begin, std::int64_t end) {
  switch (tables.grad) {
    case DType::float64:
      return sum_chunks_of<double>(tables, begin, end);
    case DType::float32:
      return sum_chunks_of<float>(tables, begin, end);
    case DType::bfloat16:
      return sum_chunks_of<BFloat16>(tables, begin, end);
    case DType::float16:
      return sum_chunks_of<Half>(tables, begin, end);
  }
}

}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
