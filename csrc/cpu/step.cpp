// The loop over segments. Built once per instruction set (RADAM_INSTRUCTION_SET names it), so no
// function here may have external linkage but step_range: the linker keeps one copy of the others.
#include "step.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Scalars converted at a time: five float64 scratch arrays of this length fit the L1 cache.
constexpr std::int64_t kTile = 512;

// Scalars updated between prefetches, and how far those reach ahead: the hardware's own stop at the
// end of each page, which costs 7 % of the bandwidth.
constexpr std::int64_t kRun = 64;
constexpr std::int64_t kAhead = 256;

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

template <typename T>
constexpr DType native_dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;

template <typename Stored, typename T>
void convert_in(T* to, const void* from, std::int64_t offset, std::int64_t count) {
  const Stored* source = static_cast<const Stored*>(from) + offset;
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(load(source[i]));
}

template <typename Stored, typename T>
void convert_out(void* to, const T* from, std::int64_t offset, std::int64_t count) {
  Stored* target = static_cast<Stored*>(to) + offset;
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) store(target[i], static_cast<float>(from[i]));
}

// A window of `count` scalars as the arithmetic type: the memory itself where it is stored as T,
// else a converted copy that close() writes back.
template <typename T>
class Window {
 public:
  T* open(const void* memory, DType stored, std::int64_t offset, std::int64_t count) {
    if (stored == native_dtype<T>) return static_cast<T*>(const_cast<void*>(memory)) + offset;
    switch (stored) {
      case DType::bfloat16:
        convert_in<BFloat16>(copy_, memory, offset, count);
        break;
      case DType::float16:
        convert_in<Half>(copy_, memory, offset, count);
        break;
      case DType::float32:
        convert_in<float>(copy_, memory, offset, count);
        break;
      case DType::float64:
        convert_in<double>(copy_, memory, offset, count);
        break;
    }
    return copy_;
  }

  void close(void* memory, DType stored, std::int64_t offset, std::int64_t count) const {
    if (stored == DType::bfloat16) convert_out<BFloat16>(memory, copy_, offset, count);
    if (stored == DType::float16) convert_out<Half>(memory, copy_, offset, count);
  }

 private:
  alignas(64) T copy_[kTile];
};

template <Update update, bool l2, bool amsgrad, typename T>
void loop(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq, std::int64_t count,
          const Coefficients<T>& coefficients) {
  const Coefficients<T> c = coefficients;
  const auto update_range = [&](std::int64_t from, std::int64_t to) {
#pragma omp simd
    for (std::int64_t i = from; i < to; ++i) {
      if constexpr (amsgrad) {
        update_element<update, l2, true>(param[i], grad[i], exp_avg[i], exp_avg_sq[i],
                                         max_exp_avg_sq[i], c);
      } else {
        T unused{};
        update_element<update, l2, false>(param[i], grad[i], exp_avg[i], exp_avg_sq[i], unused, c);
      }
    }
  };
  constexpr std::int64_t line = 64 / sizeof(T);
  std::int64_t i = 0;
  for (; i + kRun + kAhead <= count; i += kRun) {
    for (std::int64_t j = i + kAhead; j < i + kAhead + kRun; j += line) {
      __builtin_prefetch(param + j, 1);
      __builtin_prefetch(grad + j);
      __builtin_prefetch(exp_avg + j, 1);
      __builtin_prefetch(exp_avg_sq + j, 1);
      if constexpr (amsgrad) __builtin_prefetch(max_exp_avg_sq + j, 1);
    }
    update_range(i, i + kRun);
  }
  update_range(i, count);
}

template <typename T>
using Loop = void (*)(T*, const T*, T*, T*, T*, std::int64_t, const Coefficients<T>&);

template <typename T, bool l2, bool amsgrad>
Loop<T> choose(Update update) {
  switch (update) {
    case Update::none:
      return loop<Update::none, l2, amsgrad, T>;
    case Update::momentum:
      return loop<Update::momentum, l2, amsgrad, T>;
    case Update::rectified:
      return loop<Update::rectified, l2, amsgrad, T>;
    case Update::skipped:
      break;  // only a device's own prologue says so
  }
  return nullptr;
}

template <typename T>
Loop<T> choose(Update update, bool l2, bool amsgrad) {
  if (amsgrad) return l2 ? choose<T, true, true>(update) : choose<T, false, true>(update);
  return l2 ? choose<T, true, false>(update) : choose<T, false, false>(update);
}

template <typename T>
void step_segment(const Segment& s, const SegmentTypes& types, const StepCoefficients& step,
                  std::int64_t begin, std::int64_t end) {
  const bool amsgrad = s.max_exp_avg_sq != nullptr;
  const Coefficients<T> c = round_to<T>(step.values);
  const Loop<T> run = choose<T>(step.update, step.values.l2 != 0, amsgrad);
  const bool stored_as_T = types.param == native_dtype<T> && types.grad == native_dtype<T> &&
                           types.exp_avg == native_dtype<T> &&
                           types.exp_avg_sq == native_dtype<T> &&
                           (!amsgrad || types.max_exp_avg_sq == native_dtype<T>);
  const std::int64_t tile = stored_as_T ? end - begin : kTile;
  Window<T> param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq;
  for (std::int64_t at = begin; at < end; at += tile) {
    const std::int64_t n = smaller(tile, end - at);
    run(param.open(s.param, types.param, at, n), grad.open(s.grad, types.grad, at, n),
        exp_avg.open(s.exp_avg, types.exp_avg, at, n),
        exp_avg_sq.open(s.exp_avg_sq, types.exp_avg_sq, at, n),
        amsgrad ? max_exp_avg_sq.open(s.max_exp_avg_sq, types.max_exp_avg_sq, at, n) : nullptr, n,
        c);
    param.close(s.param, types.param, at, n);
    exp_avg.close(s.exp_avg, types.exp_avg, at, n);
    exp_avg_sq.close(s.exp_avg_sq, types.exp_avg_sq, at, n);
    if (amsgrad) max_exp_avg_sq.close(s.max_exp_avg_sq, types.max_exp_avg_sq, at, n);
  }
}

}  // namespace

void step_range(const Segment* segments, std::int64_t count, const SegmentTypes& types,
                const StepCoefficients* coefficients, std::int64_t begin, std::int64_t end) {
  // The segment that holds `begin`: the last one that starts at or before it.
  std::int64_t low = 0, high = count;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (segments[middle].first <= begin ? low : high) = middle;
  }
  for (std::int64_t i = low; i < count && segments[i].first < end; ++i) {
    const Segment& s = segments[i];
    const std::int64_t from = begin > s.first ? begin - s.first : 0;
    const std::int64_t to = smaller(end - s.first, s.numel);
    if (from >= to) continue;
    const StepCoefficients& c = coefficients[s.coefficients];
    if (types.param == DType::float64) {
      step_segment<double>(s, types, c, from, to);
    } else {
      step_segment<float>(s, types, c, from, to);
    }
  }
}

}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
