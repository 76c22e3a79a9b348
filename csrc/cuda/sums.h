// The work of one thread in the kernels that take the norm of the gradients. As grid.h, it uses
// nothing of CUDA. A block folds kSumChunk numbers (see ../sums.h): each thread folds eight of
// them, and fold_block() the results of the threads.
#pragma once

#include <cstdint>

#include "../sums.h"
#include "grid.h"

namespace radam::cuda {

constexpr int kSumThreads = 128;
// Whether the step kernels of this build can sum the squares of their differences.
constexpr bool kTracks = kChunk == kSumChunk && kThreads == kSumThreads;
static_assert(kSumChunk == 8 * kSumThreads, "a thread folds eight numbers");

// Segments are padded to multiples of this, so that no block of any kernel has parts of two.
constexpr std::int64_t kPadding = kChunk > kSumChunk ? kChunk : kSumChunk;

struct FoldArguments {
  const double* from;
  const FoldRow* rows;  // one for each block; null: from[1024 i], ... to to[i]
  double* to;
  std::int64_t numel;  // without rows: of `from`
};

// What the host reads after a step.
struct ClipState {
  Clip clip;
  double skipped;  // number of skipped steps
};

struct ClipArguments {
  const double* square_sum;
  const float* grad_scale;  // null: 1
  const double* failed;     // null, or a number above 0: another process failed
  ClipOptions options;
  ClipState* state;
};

// The coefficients of a step that the host counts, before they are clipped.
struct RoundArguments {
  const StepCoefficients<double>* given;
  const Clip* clip;
  void* coefficients;  // array of StepCoefficients of the arithmetic type
  std::int64_t num_rows;
  bool arithmetic_is_float64;
};

namespace detail {

// Folds the numbers `thread`, `thread + kSumThreads`, ... of up to kSumChunk numbers.
template <typename Number>
RADAM_INLINE double fold_eight(int thread, std::int64_t numel, const Number& number) {
  if (numel <= 0) return 0.0;
  const int last = static_cast<int>(smaller(numel, kSumChunk)) - 1;
  double x[8];
  RADAM_UNROLL
  for (int i = 0; i < 8; ++i) {
    // All loads are issued at once: none depends on a branch.
    const int at = thread + i * kSumThreads;
    const double found = number(at < last ? at : last);
    x[i] = at <= last ? found : 0.0;
  }
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

}  // namespace detail

template <typename G>
RADAM_INLINE double sum_thread(const StepArguments& a, std::int64_t block, int thread) {
  const std::int64_t begin = block * kSumChunk;
  const Segment s = segment_at(a, begin / kChunk, begin).segment;
  const G* const gradient = detail::array<const G>(s, role::grad, begin - s.first);
  return detail::fold_eight(thread, s.numel - (begin - s.first), [&](int at) {
    const auto x = static_cast<double>(load(gradient[at]));
    return x * x;
  });
}

// Of the differences that the threads of a block have made to a chunk.
template <typename T>
RADAM_INLINE double difference_thread(const T* differences, int numel, int thread) {
  return detail::fold_eight(thread, numel, [&](int at) {
    const auto x = static_cast<double>(differences[at]);
    return x * x;
  });
}

RADAM_INLINE FoldRow row_of(const FoldArguments& a, std::int64_t block) {
  if (a.rows != nullptr) return a.rows[block];
  const std::int64_t first = block * kSumChunk;
  return {first, detail::smaller(kSumChunk, a.numel - first), block};
}

RADAM_INLINE double fold_thread(const FoldArguments& a, const FoldRow& row, int thread) {
  const double* const from = a.from + row.first;
  return detail::fold_eight(thread, row.numel, [&](int at) { return from[at]; });
}

RADAM_INLINE void clip_thread(const ClipArguments& a) {
  const double scale = a.grad_scale != nullptr ? static_cast<double>(*a.grad_scale) : 1.0;
  Clip result = clip(*a.square_sum, scale, a.options);
  if (a.failed != nullptr && *a.failed > 0) {
    result.skips = 1.0;
  } else {
    a.state->skipped += result.skips;
  }
  a.state->clip = result;
}

RADAM_INLINE void round_thread(const RoundArguments& a, std::int64_t index) {
  if (index >= a.num_rows) return;
  const StepCoefficients<double>& given = a.given[index];
  StepCoefficients<double> row{given.values, given.update};
  row.values.grad_mul *= a.clip->coefficient;
  if (a.clip->skips != 0) row.update = Update::skipped;
  if (a.arithmetic_is_float64) {
    auto& to = static_cast<StepCoefficients<double>*>(a.coefficients)[index];
    to.values = row.values;  // not the padding
    to.update = row.update;
  } else {
    static_cast<StepCoefficients<float>*>(a.coefficients)[index] = round_to<float>(row);
  }
}

}  // namespace radam::cuda
