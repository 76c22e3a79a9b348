// The loop over segments. It is built once per instruction set, which RADAM_INSTRUCTION_SET names.
// Only step_range and step_chunks may have external linkage: of other functions, the linker would
// keep one build.
#include "cursor.h"
#include "fold.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Elements that are converted at a time: five float64 arrays of this length fit into the L1 cache.
constexpr std::int64_t kTile = 512;

// Elements between prefetches, and the distance of a prefetch.
constexpr std::int64_t kRun = 64;
constexpr std::int64_t kAhead = 256;

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

template <typename T>
constexpr DType native_dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;

template <typename Stored, typename T>
void convert_in(T* to, const void* from, std::int64_t offset, std::int64_t numel) {
  const Stored* source = static_cast<const Stored*>(from) + offset;
#pragma omp simd
  for (std::int64_t i = 0; i < numel; ++i) to[i] = static_cast<T>(load(source[i]));
}

template <typename Stored, typename T>
void convert_out(void* to, const T* from, std::int64_t offset, std::int64_t numel) {
  Stored* target = static_cast<Stored*>(to) + offset;
#pragma omp simd
  for (std::int64_t i = 0; i < numel; ++i) store(target[i], static_cast<float>(from[i]));
}

// A part of an array in the arithmetic type: the memory itself if it is stored as T, otherwise a
// converted copy that close() writes back.
template <typename T>
class Window {
 public:
  T* open(const void* memory, DType stored, std::int64_t offset, std::int64_t numel) {
    if (stored == native_dtype<T>) return static_cast<T*>(const_cast<void*>(memory)) + offset;
    switch (stored) {
      case DType::bfloat16:
        convert_in<BFloat16>(copy_, memory, offset, numel);
        break;
      case DType::float16:
        convert_in<Half>(copy_, memory, offset, numel);
        break;
      case DType::float32:
        convert_in<float>(copy_, memory, offset, numel);
        break;
      case DType::float64:
        convert_in<double>(copy_, memory, offset, numel);
        break;
    }
    return copy_;
  }

  void close(void* memory, DType stored, std::int64_t offset, std::int64_t numel) const {
    if (stored == DType::bfloat16) convert_out<BFloat16>(memory, copy_, offset, numel);
    if (stored == DType::float16) convert_out<Half>(memory, copy_, offset, numel);
  }

 private:
  alignas(64) T copy_[kTile];
};

// The arrays of a segment in the arithmetic type, starting at an offset.
template <typename T>
struct Arrays {
  T* param;
  const T* grad;
  T *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
  T* differences = nullptr;  // receives what an update adds to the parameters, if it is tracked
};

// Reads the arrays of a segment as the arithmetic type, and writes them back.
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

  Arrays<T> load(std::int64_t offset, std::int64_t numel) {
    T* at[kRoles] = {};
    for (int r = 0; r < kRoles; ++r) {
      if (is_updated(r)) {
        at[r] = windows_[r].open(segment_.at[r], types_.of[r], offset, numel);
      }
    }
    return {at[role::param], at[role::grad], at[role::exp_avg], at[role::exp_avg_sq],
            at[role::max_exp_avg_sq]};
  }

  void store(std::int64_t offset, std::int64_t numel) {
    for (int r = 0; r < kRoles; ++r) {
      if (is_updated(r) && r != role::grad) {
        windows_[r].close(segment_.at[r], types_.of[r], offset, numel);
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
  Storage<T> storage(tables.types, segment);
  const bool is_native = storage.is_native();
  const Loop<T> run = choose<T>(step.update, step.values.l2 != 0, tables.amsgrad,
                                tables.prefetch && is_native, false);
  const std::int64_t tile = is_native ? end - begin : kTile;
  for (std::int64_t at = begin; at < end; at += tile) {
    const std::int64_t numel = smaller(tile, end - at);
    run(storage.load(at, numel), numel, step.values);
    storage.store(at, numel);
  }
}

// Copies elements of an array of any stored type, in the arithmetic type.
template <typename T>
void copy(T* to, const void* from, DType stored, std::int64_t offset, std::int64_t numel) {
  switch (stored) {
    case DType::float64:
      return convert_in<double>(to, from, offset, numel);
    case DType::float32:
      return convert_in<float>(to, from, offset, numel);
    case DType::bfloat16:
      return convert_in<BFloat16>(to, from, offset, numel);
    case DType::float16:
      return convert_in<Half>(to, from, offset, numel);
  }
}

// Updates a chunk. Returns the sum of the squares of the differences to the stored parameters.
template <typename T>
double step_chunk(const Tables& tables, const Segment& segment, std::int64_t offset,
                  std::int64_t numel) {
  alignas(64) T before[kSumChunk], after[kSumChunk];
  const void* const param = segment.at[role::param];
  const DType stored = tables.types.of[role::param];
  Storage<T> storage(tables.types, segment);
  if (storage.is_native()) {  // the loop itself notes the differences
    const StepCoefficients<T>& step =
        static_cast<const StepCoefficients<T>*>(tables.coefficients)[segment.coefficients_index];
    Arrays<T> arrays = storage.load(offset, numel);
    arrays.differences = after;
    choose<T>(step.update, step.values.l2 != 0, tables.amsgrad, tables.prefetch, true)(
        arrays, numel, step.values);
    return fold_squares(numel, [&](std::int64_t i) { return after[i]; });
  }
  copy(before, param, stored, offset, numel);
  step_segment<T>(tables, segment, offset, offset + numel);
  copy(after, param, stored, offset, numel);
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
