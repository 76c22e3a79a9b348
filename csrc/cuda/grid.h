// The work of one thread of the CUDA grid. It uses nothing of CUDA: kernels call it once per
// thread, and the tests call it in loops on the host.
//
// A block updates one chunk. It searches the table for the segment that holds the chunk, so the
// host need not list the chunks. Arrays are read and written in 16-byte words; each thread reads
// several words before it writes any, to keep many loads in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../segments.h"
#include "storage.h"

namespace radam::cuda {

constexpr int kThreads = 128;
// Elements per block: eight per thread, which is eight or more independent 16-byte loads in
// float32.
constexpr std::int64_t kChunk = kThreads * 8;

// A small table is passed in the arguments of the step kernel, which may have 4,096 bytes on every
// device. The other members take 32 bytes.
constexpr std::size_t kFewCoefficients = 4;
constexpr std::size_t kFewSegments =
    (4096 - 32 - kFewCoefficients * sizeof(StepCoefficients)) / sizeof(Segment);

struct StepArguments {
  const Segment* segments;               // in device memory; null: use few_segments
  const StepCoefficients* coefficients;  // in device memory; null: use few_coefficients
  std::int64_t num_segments;
  float segments_per_block;  // gives the first guess of the search
  Segment few_segments[kFewSegments];
  StepCoefficients few_coefficients[kFewCoefficients];
};

// A larger table is copied to device memory by kernels that take it in their arguments. Arguments
// are copied by value, also into a captured graph, so no host memory has to outlive the call.
constexpr std::size_t kUploadWords = (32764 - 16) / 8;  // 32,764 bytes since CUDA 12.1

struct UploadArguments {
  std::uint64_t* to;
  std::int64_t num_words;  // of 8 bytes
  std::uint64_t words[kUploadWords];
};

// If the device counts the steps, every segment has its own step counter and coefficients.
struct PrologueArguments {
  const Segment* segments;
  std::int64_t num_segments;
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

// The index of the segment that holds element `begin`: the last one that starts at or before it.
// The two segments at the guess are read together; with tensors of similar sizes, one of them is
// it.
RADAM_INLINE std::int64_t find(const Segment* segments, std::int64_t num_segments,
                               std::int64_t begin, std::int64_t guess) {
  const std::int64_t near = smaller(guess, num_segments - 1);
  const std::int64_t next = smaller(near + 1, num_segments - 1);
  const bool from_near = segments[near].first <= begin;
  const bool from_next = segments[next].first <= begin;
  if (from_near && !from_next) return near;
  std::int64_t low = from_next ? next : 0;
  std::int64_t high = from_next ? num_segments : near;
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (segments[middle].first <= begin ? low : high) = middle;
  }
  return low;
}

}  // namespace detail

// The part of a segment that one block updates.
template <typename Storage>
class Chunk {
  using T = typename Storage::T;

 public:
  // Elements per pack: as many as fill a word in the narrowest type.
  static constexpr int kWidth = kWord / Storage::kNarrowest;
  // Packs that a thread has in flight: two in float32, whose packs are short.
  static constexpr int kPacks = detail::larger(1, (Storage::kWidest == 8 ? 4 : 8) / kWidth);

  RADAM_INLINE Chunk(const Segment& s, std::int64_t offset)
      : storage_(s, offset), numel_(static_cast<int>(detail::smaller(kChunk, s.numel - offset))) {}

  RADAM_INLINE void step(int thread, Update update, const Coefficients<T>& c) const {
    int done = 0;
    if (storage_.is_aligned()) {
      const int packs = numel_ / kWidth;
      RADAM_DO_NOT_UNROLL
      for (int first = thread; first < packs; first += kThreads * kPacks) {
        step_packs<kWidth, kPacks>(first, packs, update, c);
      }
      done = packs * kWidth;
    }
    RADAM_DO_NOT_UNROLL
    for (int i = done + thread; i < numel_; i += kThreads) step_packs<1, 1>(i, numel_, update, c);
  }

 private:
  // Updates the packs `first`, `first + kThreads`, ... below `end`. Neighbouring threads access
  // neighbouring words.
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

  // A runtime choice: if the device counts the steps, the host does not know the kind of update.
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
  int numel_;
};

// Kernel arguments and device memory are read by different instructions: each branch returns a
// copy, so that no access has to find out which memory it reads.
RADAM_INLINE Segment segment_at(const StepArguments& a, std::int64_t begin, std::int64_t guess) {
  if (a.segments != nullptr) {
    const Segment* const segments = detail::in_device_memory(a.segments);
    return segments[detail::find(segments, a.num_segments, begin, guess)];
  }
  return a.few_segments[detail::find(a.few_segments, a.num_segments, begin, guess)];
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
  const StepCoefficients step = coefficients_at(a, s.coefficients_index);
  if (step.update == Update::skipped) return;
  Chunk<Storage>(s, begin - s.first)
      .step(thread, step.update, round_to<typename Storage::T>(step.values));
}

RADAM_INLINE void upload_thread(const UploadArguments& a, std::int64_t index) {
  if (index < a.num_words) a.to[index] = a.words[index];
}

RADAM_INLINE void prologue_thread(const PrologueArguments& a, std::int64_t index) {
  if (index >= a.num_segments) return;
  const Segment& s = a.segments[index];
  const DeviceOptions& given = a.options[s.options_index];
  StepCoefficients& result = a.coefficients[s.coefficients_index];
  void* const counter = s.at[role::step];
  const double count =
      a.step_is_float64 ? *static_cast<double*>(counter) : *static_cast<float*>(counter);
  if (!is_count(count) || (given.found_inf != nullptr && *given.found_inf != 0)) {
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
  // The counter is incremented in its own dtype, as in torch.
  const double step =
      a.step_is_float64 ? *static_cast<double*>(counter) += 1 : *static_cast<float*>(counter) += 1;
  result = coefficients(step_terms(step, options), options, grad_scale);
}

}  // namespace radam::cuda
