// The loop over segments. Built once per instruction set (RADAM_INSTRUCTION_SET names it), so no
// function here may have external linkage but step_range: the linker keeps one copy of the others.
#include "step.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Scalars converted at a time: five float64 scratch arrays of this length fit the L1 cache.
constexpr std::int64_t kTile = 512;

// Scalars updated between prefetches, and how far those reach ahead.
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

// The arrays of a segment as the arithmetic type, from one scalar on.
template <typename T>
struct Arrays {
  T* param;
  const T* grad;
  T *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
};

// How the arrays of a segment are read into the arithmetic type, and written back.
template <typename T>
class Storage {
 public:
  Storage(const SegmentTypes& types, const Segment& segment) : types_(types), segment_(segment) {}

  // Whether every array is stored in the arithmetic type.
  bool is_native() const {
    for (int r = 0; r < kRoles; ++r) {
      if (is_updated(r) && types_.of[r] != native_dtype<T>) return false;
    }
    return true;
  }

  Arrays<T> load(std::int64_t offset, std::int64_t count) {
    T* at[kRoles] = {};
    for (int r = 0; r < kRoles; ++r) {
      if (is_updated(r)) {
        at[r] = windows_[r].open(segment_.at[r], types_.of[r], offset, count);
      }
    }
    return {at[role::param], at[role::grad], at[role::exp_avg], at[role::exp_avg_sq],
            at[role::max_exp_avg_sq]};
  }

  void store(std::int64_t offset, std::int64_t count) {
    for (int r = 0; r < kRoles; ++r) {
      if (is_updated(r) && r != role::grad) {
        windows_[r].close(segment_.at[r], types_.of[r], offset, count);
      }
    }
  }

 private:
  bool is_updated(int r) const {
    return kRoleKinds[r] != RoleKind::counter && segment_.at[r] != nullptr;
  }

  const SegmentTypes& types_;
  const Segment& segment_;
  Window<T> windows_[kRoles];
};

template <Update update, bool l2, bool amsgrad, bool prefetch, typename T>
void loop(const Arrays<T>& arrays, std::int64_t count, const Coefficients<T>& coefficients) {
  const auto [param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq] = arrays;
  const Coefficients<T> c = coefficients;
  const auto update_range = [=](std::int64_t from, std::int64_t to) {
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
  std::int64_t i = 0;
  if constexpr (prefetch) {
    constexpr std::int64_t line = 64 / sizeof(T);
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
  }
  update_range(i, count);
}

template <typename T>
using Loop = void (*)(const Arrays<T>&, std::int64_t, const Coefficients<T>&);

template <typename T, bool l2, bool amsgrad, bool prefetch>
Loop<T> loop_of(Update update) {
  switch (update) {
    case Update::none:
      return loop<Update::none, l2, amsgrad, prefetch, T>;
    case Update::momentum:
      return loop<Update::momentum, l2, amsgrad, prefetch, T>;
    case Update::rectified:
      return loop<Update::rectified, l2, amsgrad, prefetch, T>;
    case Update::skipped:
      break;  // only a device's own prologue says so
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
  const StepCoefficients& step = tables.coefficients[segment.coefficients];
  const Coefficients<T> c = round_to<T>(step.values);
  Storage<T> storage(tables.types, segment);
  const bool is_native = storage.is_native();
  const Loop<T> run =
      choose<T>(step.update, step.values.l2 != 0, tables.amsgrad, tables.prefetch && is_native);
  const std::int64_t tile = is_native ? end - begin : kTile;
  for (std::int64_t at = begin; at < end; at += tile) {
    const std::int64_t count = smaller(tile, end - at);
    run(storage.load(at, count), count, c);
    storage.store(at, count);
  }
}

}  // namespace

void step_range(const Tables& tables, std::int64_t begin, std::int64_t end) {
  // The segment that holds `begin`: the last one that starts at or before it.
  std::int64_t low = 0, high = tables.count;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (tables.segments[middle].first <= begin ? low : high) = middle;
  }
  for (std::int64_t i = low; i < tables.count && tables.segments[i].first < end; ++i) {
    const Segment& s = tables.segments[i];
    const std::int64_t from = begin > s.first ? begin - s.first : 0;
    const std::int64_t to = smaller(end - s.first, s.numel);
    if (from >= to) continue;
    if (tables.types.of[role::param] == DType::float64) {
      step_segment<double>(tables, s, from, to);
    } else {
      step_segment<float>(tables, s, from, to);
    }
  }
}

}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
