// The loop over segments. It is built once per instruction set, which RADAM_INSTRUCTION_SET names.
// Only step_range and step_chunks may have external linkage: of other functions, the linker would
// keep one build.
#include "cursor.h"
#include "fold.h"
#include "storage.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Elements between prefetches, and the distance of a prefetch.
constexpr std::int64_t kRun = 64;
constexpr std::int64_t kAhead = 256;

template <Update update, bool l2, bool amsgrad, bool prefetch, bool tracked, typename T>
void loop(const Arrays<T>& arrays, std::int64_t numel, const Coefficients<T>& coefficients) {
  const auto [param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, differences] = arrays;
  const Coefficients<T> c = coefficients;
  const auto update_range = [=](std::int64_t from, std::int64_t to) {
#pragma omp simd
    for (std::int64_t i = from; i < to; ++i) {
      [[maybe_unused]] T before;
      if constexpr (tracked) before = param[i];
      if constexpr (amsgrad) {
        update_element<update, l2, true>(param[i], grad[i], exp_avg[i], exp_avg_sq[i],
                                         max_exp_avg_sq[i], c);
      } else {
        T unused{};
        update_element<update, l2, false>(param[i], grad[i], exp_avg[i], exp_avg_sq[i], unused, c);
      }
      if constexpr (tracked) differences[i] = param[i] - before;
    }
  };
  std::int64_t i = 0;
  if constexpr (prefetch) {
    constexpr std::int64_t line = 64 / sizeof(T);
    for (; i + kRun + kAhead <= numel; i += kRun) {
      for (std::int64_t j = i + kAhead; j < i + kAhead + kRun; j += line) {
        __builtin_prefetch(param + j, 1);
        __builtin_prefetch(grad + j);
        __builtin_prefetch(exp_avg + j, 1);
        __builtin_prefetch(exp_avg_sq + j, 1);
        if constexpr (amsgrad) __builtin_prefetch(max_exp_avg_sq + j, 1);
      }
      update_range(i, i + kRun);
    }
  }
  update_range(i, numel);
}

template <typename T>
using Loop = void (*)(const Arrays<T>&, std::int64_t, const Coefficients<T>&);

template <typename T, bool l2, bool amsgrad, bool prefetch, bool tracked>
Loop<T> loop_of(Update update) {
  switch (update) {
    case Update::none:
      return loop<Update::none, l2, amsgrad, prefetch, tracked, T>;
    case Update::momentum:
      return loop<Update::momentum, l2, amsgrad, prefetch, tracked, T>;
    case Update::rectified:
      return loop<Update::rectified, l2, amsgrad, prefetch, tracked, T>;
    case Update::skipped:
      break;  // only the prologue of a device sets it
  }
  return nullptr;
}

template <typename T, bool... chosen>
Loop<T> choose(Update update) {
  return loop_of<T, chosen...>(update);
}

template <typename T, bool... chosen, typename... Bools>
Loop<T> choose(Update update, bool next, Bools... rest) {
  return next ? choose<T, chosen..., true>(update, rest...)
              : choose<T, chosen..., false>(update, rest...);
}

template <typename T>
void step_segment(const Tables& tables, const Segment& segment, std::int64_t begin,
                  std::int64_t end) {
  const auto* const rows = static_cast<const StepCoefficients<T>*>(tables.coefficients);
  const StepCoefficients<T>& step = rows[segment.coefficients_index];
  Storage<T> storage(tables, segment);
  const bool is_native = storage.is_native();
  const Loop<T> run =
      choose<T>(step.update, step.values.l2 != 0, tables.types.has[role::max_exp_avg_sq],
                tables.prefetch && is_native, false);
  const std::int64_t tile = is_native ? end - begin : kTile;
  for (std::int64_t at = begin; at < end; at += tile) {
    const std::int64_t numel = smaller(tile, end - at);
    run(storage.load(at, numel), numel, step.values);
    storage.store(at, numel);
  }
}

// Updates a chunk. Returns the sum of the squares of the differences to the stored parameters.
template <typename T>
double step_chunk(const Tables& tables, const Segment& segment, std::int64_t offset,
                  std::int64_t numel) {
  alignas(64) T before[kSumChunk], after[kSumChunk];
  Storage<T> storage(tables, segment);
  if (storage.is_native()) {  // the loop itself notes the differences
    const StepCoefficients<T>& step =
        static_cast<const StepCoefficients<T>*>(tables.coefficients)[segment.coefficients_index];
    Arrays<T> arrays = storage.load(offset, numel);
    arrays.differences = after;
    choose<T>(step.update, step.values.l2 != 0, tables.types.has[role::max_exp_avg_sq],
              tables.prefetch, true)(arrays, numel, step.values);
    return fold_squares(numel, [&](std::int64_t i) { return after[i]; });
  }
  storage.read_param(before, offset, numel);
  step_segment<T>(tables, segment, offset, offset + numel);
  storage.read_param(after, offset, numel);
  return fold_squares(numel, [&](std::int64_t i) { return after[i] - before[i]; });
}

}  // namespace

void step_chunks(const Tables& tables, std::int64_t begin, std::int64_t end) {
  Cursor here(tables, begin);
  for (std::int64_t chunk = begin; chunk < end; ++chunk) {
    here.move_to(chunk);
    tables.sums[chunk] = tables.types.arithmetic_is_float64()
                             ? step_chunk<double>(tables, *here.segment, here.offset, here.numel)
                             : step_chunk<float>(tables, *here.segment, here.offset, here.numel);
  }
}

void step_range(const Tables& tables, std::int64_t begin, std::int64_t end) {
  const std::int64_t first = segment_of(tables.num_segments, begin,
                                        [&](std::int64_t i) { return tables.segments[i].first; });
  for (std::int64_t i = first; i < tables.num_segments && tables.segments[i].first < end; ++i) {
    const Segment& s = tables.segments[i];
    const std::int64_t from = begin > s.first ? begin - s.first : 0;
    const std::int64_t to = smaller(end - s.first, s.numel);
    if (from >= to) continue;
    if (tables.types.arithmetic_is_float64()) {
      step_segment<double>(tables, s, from, to);
    } else {
      step_segment<float>(tables, s, from, to);
    }
  }
}

}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
