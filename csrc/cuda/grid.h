// What one thread of the CUDA grid does, free of CUDA: device code calls it for every thread of a
// launch, the tests call it in loops on the host.
//
// A block updates one chunk. It finds the segment that holds it by a search in the table, so a
// launch needs no list of chunks. Every array of a chunk is read before any is written, in 16-byte
// words, of which each thread has several in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../segments.h"
#include "storage.h"

namespace radam::cuda {

constexpr int kThreads = 128;
// Scalars of a block: eight a thread, which are eight or more independent 16-byte loads of float32.
constexpr std::int64_t kChunk = kThreads * 8;

// Small tables travel in the arguments of the step's kernel, which every device takes 4 KB of. The
// other members are 32 bytes.
constexpr std::size_t kFewCoefficients = 4;
constexpr std::size_t kFewSegments =
    (4096 - 32 - kFewCoefficients * sizeof(StepCoefficients)) / sizeof(Segment);

struct StepArguments {
  const Segment* segments;               // in device memory; null: those below
  const StepCoefficients* coefficients;  // in device memory; null: those below
  std::int64_t count;                    // of segments
  float segments_per_block;              // where to begin the search
  Segment few_segments[kFewSegments];
  StepCoefficients few_coefficients[kFewCoefficients];
};

// The arguments of a kernel carry larger tables into device memory: they are copied by value, also
// into a captured graph, so no host memory has to outlive the call.
constexpr std::size_t kUploadWords = (32764 - 16) / 8;  // 32,764 bytes since CUDA 12.1

struct UploadArguments {
  std::uint64_t* to;
  std::int64_t count;  // of 8-byte words
  std::uint64_t words[kUploadWords];
};

// For steps that are counted on the device: every segment has a counter and coefficients of its
// own.
struct PrologueArguments {
  const Segment* segments;
  std::int64_t count;
  const DeviceOptions* options;
  StepCoefficients* coefficients;
  bool step_is_float64;
};

namespace detail {

constexpr int larger(int a, int b) {
  return a > b ? a : b;
}

RADAM_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

// The index of the segment that holds scalar `begin`: the last one that starts at or before it. The
// two segments at the guess are read together; tensors of similar sizes are found there.
RADAM_INLINE std::int64_t find(const Segment* segments, std::int64_t count, std::int64_t begin,
                               std::int64_t guess) {
  const std::int64_t near = smaller(guess, count - 1);
  const std::int64_t next = smaller(near + 1, count - 1);
  const bool from_near = segments[near].first <= begin;
  const bool from_next = segments[next].first <= begin;
  if (from_near && !from_next) return near;
  std::int64_t low = from_next ? next : 0;
  std::int64_t high = from_next ? count : near;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (segments[middle].first <= begin ? low : high) = middle;
  }
  return low;
}

}  // namespace detail

// A block's part of a segment.
template <typename Storage>
class Chunk {
  using T = typename Storage::T;

 public:
  // Scalars that fill a word of the narrowest type.
  static constexpr int kWidth = kWord / Storage::kNarrowest;
  // Such packs that a thread works on at once: float32 has two, for more loads in flight.
  static constexpr int kPacks = detail::larger(1, (Storage::kWidest == 8 ? 4 : 8) / kWidth);

  RADAM_INLINE Chunk(const Segment& s, std::int64_t offset)
      : storage_(s, offset), count_(static_cast<int>(detail::smaller(kChunk, s.numel - offset))) {}

  RADAM_INLINE void step(int thread, Update update, const Coefficients<T>& c) const {
    int done = 0;
    if (storage_.is_aligned()) {
      const int packs = count_ / kWidth;
      RADAM_DO_NOT_UNROLL
      for (int first = thread; first < packs; first += kThreads * kPacks) {
        step_packs<kWidth, kPacks>(first, packs, update, c);
      }
      done = packs * kWidth;
    }
    RADAM_DO_NOT_UNROLL
    for (int i = done + thread; i < count_; i += kThreads) step_packs<1, 1>(i, count_, update, c);
  }

 private:
  // Packs `first`, `first + kThreads`, ... of the chunk, as far as there are any: neighbouring
  // threads touch neighbouring words.
  template <int width, int packs>
  RADAM_INLINE void step_packs(int first, int end, Update update, const Coefficients<T>& c) const {
    typename Storage::template Pack<width> pack[packs];
    RADAM_UNROLL
    for (int k = 0; k < packs; ++k) {
      const int index = first + k * kThreads;
      if (k > 0 && index >= end) break;
      pack[k].load(storage_, index * width);
    }
    RADAM_UNROLL
    for (int k = 0; k < packs; ++k) {
      const int index = first + k * kThreads;
      if (k > 0 && index >= end) break;
      update_pack<width>(pack[k], update, c);
      pack[k].store(storage_, index * width);
    }
  }

  // The kind of update is known only on the device where steps are counted there.
  template <int width, typename Pack>
  static RADAM_INLINE void update_pack(Pack& pack, Update update, const Coefficients<T>& c) {
    const auto run = [&](auto l2) {
      constexpr bool with_l2 = decltype(l2)::value;
      if (update == Update::rectified) {
        update_elements<Update::rectified, with_l2, width>(pack, c);
      } else if (update == Update::momentum) {
        update_elements<Update::momentum, with_l2, width>(pack, c);
      } else {
        update_elements<Update::none, with_l2, width>(pack, c);
      }
    };
    if (c.l2 != 0) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }
  }

  template <Update update, bool l2, int width, typename Pack>
  static RADAM_INLINE void update_elements(Pack& pack, const Coefficients<T>& c) {
    RADAM_UNROLL
    for (int i = 0; i < width; ++i) {
      Values<T> v = pack.get(i);
      update_element<update, l2, Storage::amsgrad>(v.param, v.grad, v.exp_avg, v.exp_avg_sq,
                                                   v.max_exp_avg_sq, c);
      pack.set(i, v);
    }
  }

  Storage storage_;
  int count_;
};

// Kernel arguments and device memory are read by different instructions: each branch returns a
// copy, so that no access has to find out which memory it reads.
RADAM_INLINE Segment segment_at(const StepArguments& a, std::int64_t begin, std::int64_t guess) {
  if (a.segments != nullptr) {
    const Segment* const segments = detail::in_device_memory(a.segments);
    return segments[detail::find(segments, a.count, begin, guess)];
  }
  return a.few_segments[detail::find(a.few_segments, a.count, begin, guess)];
}

RADAM_INLINE StepCoefficients coefficients_at(const StepArguments& a, std::int64_t index) {
  if (a.coefficients != nullptr) return detail::in_device_memory(a.coefficients)[index];
  return a.few_coefficients[index];
}

template <typename Storage>
RADAM_INLINE void step_thread(const StepArguments& a, std::int64_t block, int thread) {
  const std::int64_t begin = block * kChunk;
  const auto guess = static_cast<std::int64_t>(static_cast<float>(block) * a.segments_per_block);
  const Segment s = segment_at(a, begin, guess);
  const StepCoefficients step = coefficients_at(a, s.coefficients);
  if (step.update == Update::skipped) return;
  Chunk<Storage>(s, begin - s.first)
      .step(thread, step.update, round_to<typename Storage::T>(step.values));
}

RADAM_INLINE void upload_thread(const UploadArguments& a, std::int64_t index) {
  if (index < a.count) a.to[index] = a.words[index];
}

RADAM_INLINE void prologue_thread(const PrologueArguments& a, std::int64_t index) {
  if (index >= a.count) return;
  const Segment& s = a.segments[index];
  const DeviceOptions& given = a.options[s.options];
  StepCoefficients& result = a.coefficients[s.coefficients];
  if (given.found_inf != nullptr && *given.found_inf != 0) {
    result.update = Update::skipped;
    return;
  }
  StepOptions options = given.values;
  if (given.lr != nullptr) {
    options.lr = given.lr_is_float64 != 0
                     ? *static_cast<const double*>(given.lr)
                     : static_cast<double>(*static_cast<const float*>(given.lr));
  }
  const double grad_scale =
      given.grad_scale != nullptr ? static_cast<double>(*given.grad_scale) : 1.0;
  // Counted in the counter's own precision, as torch counts.
  void* const counter = s.at[role::step];
  const double step =
      a.step_is_float64 ? *static_cast<double*>(counter) += 1 : *static_cast<float*>(counter) += 1;
  result = coefficients(step_terms(static_cast<std::int64_t>(step), options), options, grad_scale);
}

}  // namespace radam::cuda
