// The work of one thread of the CUDA grid. It uses nothing of CUDA: kernels call it once per
// thread, and the tests call it in loops on the host.
//
// A block updates one chunk. It finds the segment that holds the chunk between two entries of an
// index, so the host need not list the chunks. Arrays are read and written in 16-byte words; each
// thread reads several words before it writes any, to keep many loads in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../segments.h"
#include "storage.h"

namespace radam::cuda {

// The constants of the launch. bench/tune.py builds the kernels with others and times them.
#if !defined(RADAM_THREADS)
#define RADAM_THREADS 128  // per block
#endif
#if !defined(RADAM_ELEMENTS)
#define RADAM_ELEMENTS 8  // that a thread updates in a whole chunk
#endif
#if !defined(RADAM_IN_FLIGHT)
#define RADAM_IN_FLIGHT 8  // elements that a thread loads at once: in float32, 8 words of 16 bytes
#endif
#if !defined(RADAM_RESIDENT)
#define RADAM_RESIDENT 768  // threads per multiprocessor: the most at which no register spills
#endif

constexpr int kThreads = RADAM_THREADS;
constexpr std::int64_t kChunk = kThreads * RADAM_ELEMENTS;  // elements per block
static_assert((kChunk & (kChunk - 1)) == 0, "segments are padded to multiples of a power of two");

// A small table is passed in the arguments of the step kernel, which may have 4,096 bytes on every
// device. The other members take 48 bytes. The index of a larger table takes the place of a small
// one: there it is read faster than from device memory.
constexpr std::size_t kFewCoefficientsBytes = 256;
constexpr std::size_t kFewSegments = (4096 - 48 - kFewCoefficientsBytes) / sizeof(Segment);
using IndexEntry = std::uint16_t;  // half as wide as a number of a segment: a finer index
constexpr std::size_t kIndexEntries = kFewSegments * sizeof(Segment) / sizeof(IndexEntry);

struct StepArguments {
  const Segment* segments;   // in device memory; null: use few_segments
  const void* coefficients;  // array of StepCoefficients there; null: use few_coefficients
  std::int64_t num_segments;
  std::int32_t index_shift, index_scale;
  double* sums;       // in device memory: one for each block of a kernel that sums squares; or null
  const Draw* draws;  // there, of the segments; null: nothing is rounded stochastically
  union {
    Segment few_segments[kFewSegments];
    IndexEntry index[kIndexEntries];  // see ChunkIndex
  };
  alignas(16) unsigned char few_coefficients[kFewCoefficientsBytes];
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
  void* coefficients;  // array of StepCoefficients of the arithmetic type
  Draw* draws;         // of the segments, which get the keys of the step; or null
  bool step_is_float64;
  bool arithmetic_is_float64;
};

namespace detail {

constexpr int larger(int a, int b) {
  return a > b ? a : b;
}

RADAM_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

// The segment in [low, high) that holds element `begin`: the last one that starts at or before it.
RADAM_INLINE std::int64_t find(const Segment* segments, std::int64_t low, std::int64_t high,
                               std::int64_t begin) {
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (segments[middle].first <= begin ? low : high) = middle;
  }
  return low;
}

}  // namespace detail

// The part of a segment that one block updates.
template <typename Storage, bool tracked>
class Chunk {
  using T = typename Storage::T;

 public:
  // Elements per pack: as many as fill a word in the narrowest type.
  static constexpr int kWidth = kWord / Storage::kNarrowest;
  // Packs that a thread loads at once: two in float32, whose packs are short.
  static constexpr int kPacks =
      detail::larger(1, (Storage::kWidest == 8 ? RADAM_IN_FLIGHT / 2 : RADAM_IN_FLIGHT) / kWidth);

  // draw: the random bits of the segment, if it draws any. A copy, which is read before the arrays.
  RADAM_INLINE Chunk(const Segment& s, std::int64_t offset, const Draw& draw)
      : storage_(s, offset),
        draw_(draw),
        offset_(offset),
        numel_(static_cast<int>(detail::smaller(kChunk, s.numel - offset))) {}

  // differences: null, or receives those that the step makes to the stored parameters.
  RADAM_INLINE void step(int thread, const StepCoefficients<T>& c, T* differences) const {
    int done = 0;
    if (storage_.is_aligned()) {
      const int packs = numel_ / kWidth;
      RADAM_DO_NOT_UNROLL
      for (int first = thread; first < packs; first += kThreads * kPacks) {
        step_packs<kWidth, kPacks>(first, packs, c, differences);
      }
      done = packs * kWidth;
    }
    RADAM_DO_NOT_UNROLL
    for (int i = done + thread; i < numel_; i += kThreads)
      step_packs<1, 1>(i, numel_, c, differences);
  }

  RADAM_INLINE int numel() const { return numel_; }

 private:
  // Updates the packs `first`, `first + kThreads`, ... below `end`. Neighbouring threads access
  // neighbouring words. Nothing depends on the coefficients before the loads are issued, so that
  // coefficients from device memory arrive together with the data.
  template <int width, int packs>
  RADAM_INLINE void step_packs(int first, int end, const StepCoefficients<T>& c,
                               T* differences) const {
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
      if constexpr (tracked) {
        track_pack<width>(pack[k], c, index * width, differences + index * width);
      } else {
        update_pack<width>(pack[k], c.update, c.values, index * width);
      }
      if (c.update != Update::skipped) pack[k].store(storage_, index * width);
    }
  }

  template <int width, typename Pack>
  RADAM_INLINE void track_pack(Pack& pack, const StepCoefficients<T>& c, int at,
                               T* differences) const {
    T before[width];
    RADAM_UNROLL
    for (int i = 0; i < width; ++i) before[i] = pack.get(i).param;
    update_pack<width>(pack, c.update, c.values, at);
    RADAM_UNROLL
    for (int i = 0; i < width; ++i) {
      // Infinity minus infinity would be NaN.
      differences[i] = c.update == Update::skipped ? T(0) : pack.get(i).param - before[i];
    }
  }

  // A runtime choice: if the device counts the steps, the host does not know the kind of update.
  template <int width, typename Pack>
  RADAM_INLINE void update_pack(Pack& pack, Update update, const Coefficients<T>& c, int at) const {
    const auto run = [&](auto l2) {
      constexpr bool with_l2 = decltype(l2)::value;
      if (update == Update::rectified) {
        update_elements<Update::rectified, with_l2, width>(pack, c, at);
      } else if (update == Update::momentum) {
        update_elements<Update::momentum, with_l2, width>(pack, c, at);
      } else if (update == Update::none) {
        update_elements<Update::none, with_l2, width>(pack, c, at);
      }
    };
    if (c.l2 != 0) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }
  }

  template <Update update, bool l2, int width, typename Pack>
  RADAM_INLINE void update_elements(Pack& pack, const Coefficients<T>& c, int at) const {
    RADAM_UNROLL
    for (int i = 0; i < width; ++i) {
      Values<T> v = pack.get(i);
      update_element<update, l2, Storage::amsgrad>(v.param, v.grad, v.exp_avg, v.exp_avg_sq,
                                                   v.max_exp_avg_sq, c);
      if constexpr (Storage::draws) {
        const std::uint64_t place = place_of(draw_, offset_ + at + i);
        const std::uint64_t key = place_key(draw_.step_key, place);
        pack.set(i, v, draw_.roles, random_bits(key, static_cast<std::uint32_t>(place)));
      } else {
        pack.set(i, v, 0, 0);
      }
    }
  }

  Storage storage_;
  Draw draw_;
  std::int64_t offset_;
  int numel_;
};

struct FoundSegment {
  Segment segment;
  std::int64_t index;
};

// Kernel arguments and device memory are read by different instructions: each branch returns a
// copy, so that no access has to find out which memory it reads.
RADAM_INLINE FoundSegment segment_at(const StepArguments& a, std::int64_t block,
                                     std::int64_t begin) {
  if (a.segments != nullptr) {
    const Segment* const segments = detail::in_device_memory(a.segments);
    const IndexEntry* const entry = a.index + (block >> a.index_shift);
    const std::int64_t low = std::int64_t{entry[0]} << a.index_scale;
    const std::int64_t high = std::int64_t{entry[1] + 1} << a.index_scale;
    const std::int64_t index =
        detail::find(segments, low, detail::smaller(high, a.num_segments), begin);
    return {segments[index], index};
  }
  const std::int64_t index = detail::find(a.few_segments, 0, a.num_segments, begin);
  return {a.few_segments[index], index};
}

template <typename T>
RADAM_INLINE StepCoefficients<T> coefficients_at(const StepArguments& a, std::int64_t index) {
  using Row = StepCoefficients<T>;
  if (a.coefficients != nullptr) {
    return detail::in_device_memory(static_cast<const Row*>(a.coefficients))[index];
  }
  return reinterpret_cast<const Row*>(a.few_coefficients)[index];
}

// Returns the elements of the chunk.
template <typename Storage, bool tracked = false>
RADAM_INLINE int step_thread(const StepArguments& a, std::int64_t block, int thread,
                             typename Storage::T* differences = nullptr) {
  const std::int64_t begin = block * kChunk;
  const auto [s, index] = segment_at(a, block, begin);
  const auto c = coefficients_at<typename Storage::T>(a, s.coefficients_index);
  const Draw draw = Storage::draws ? detail::in_device_memory(a.draws)[index] : Draw{};
  const Chunk<Storage, tracked> chunk(s, begin - s.first, draw);
  chunk.step(thread, c, differences);
  return chunk.numel();
}

RADAM_INLINE void upload_thread(const UploadArguments& a, std::int64_t index) {
  if (index < a.num_words) a.to[index] = a.words[index];
}

template <typename T>
RADAM_INLINE StepCoefficients<T>& computed_at(const PrologueArguments& a, const Segment& s) {
  return static_cast<StepCoefficients<T>*>(a.coefficients)[s.coefficients_index];
}

RADAM_INLINE void prologue_thread(const PrologueArguments& a, std::int64_t index) {
  if (index >= a.num_segments) return;
  const Segment& s = a.segments[index];
  const DeviceOptions& given = a.options[s.options_index];
  void* const counter = s.at[role::step];
  const double count =
      a.step_is_float64 ? *static_cast<double*>(counter) : *static_cast<float*>(counter);
  const double clip_coefficient = given.clip != nullptr ? given.clip->coefficient : 1.0;
  if (!is_count(count) || (given.found_inf != nullptr && *given.found_inf != 0) ||
      (given.clip != nullptr && given.clip->skips != 0)) {
    (a.arithmetic_is_float64 ? computed_at<double>(a, s).update : computed_at<float>(a, s).update) =
        Update::skipped;
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
  if (a.draws != nullptr) a.draws[index].step_key = step_key(a.draws[index].key, step);
  const auto c = coefficients(step_terms(step, options), options, grad_scale, clip_coefficient);
  if (a.arithmetic_is_float64) {
    computed_at<double>(a, s) = c;
  } else {
    computed_at<float>(a, s) = round_to<float>(c);
  }
}

}  // namespace radam::cuda
