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

#if defined(__CUDA_ARCH__)
#define RADAM_UNROLL _Pragma("unroll")
#define RADAM_DO_NOT_UNROLL _Pragma("unroll 1")
#else
#define RADAM_UNROLL
#define RADAM_DO_NOT_UNROLL
#endif

namespace radam::cuda {

constexpr int kThreads = 128;
// Scalars of a block: eight a thread, which are eight or more independent 16-byte loads of float32.
constexpr std::int64_t kChunk = kThreads * 8;
constexpr int kWord = 16;  // bytes of the widest load and store that every device has

// Tables up to these sizes travel in the arguments of the step's kernel: 4 KB on every device.
constexpr std::size_t kFewSegments = 56;
constexpr std::size_t kFewCoefficients = 4;

struct StepArguments {
  const Segment* segments;               // in device memory; null: those below
  const StepCoefficients* coefficients;  // likewise
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

// For steps that are counted on the device. Every segment has counter and coefficients of its own,
// at the place that Segment::coefficients says.
struct PrologueArguments {
  const Segment* segments;
  std::int64_t count;
  StepCoefficients* coefficients;
  void* counters;
  bool counters_are_float64;
  bool lr_is_float64;
  const void* lr;           // null: that of the options
  const float* grad_scale;  // null: 1
  const float* found_inf;   // null: no gradient overflowed
  StepOptions options;
};

namespace detail {

template <typename E>
struct alignas(kWord) Word {
  E elements[kWord / sizeof(E)];
};

// Addresses out of a table could be of any memory; told which, the compiler leaves the question out
// of every access.
template <typename... Pointers>
RADAM_INLINE void assume_global([[maybe_unused]] Pointers... pointers) {
#if defined(__CUDA_ARCH__)
  (__builtin_assume(__isGlobal(pointers)), ...);
#endif
}

// `width` consecutive elements, moved in 16-byte words where they fill such.
template <typename E, int width>
struct Pack {
  E elements[width];

  RADAM_INLINE void load(const E* from) {
    if constexpr (width * sizeof(E) >= kWord) {
      constexpr int in_word = kWord / sizeof(E);
      RADAM_UNROLL
      for (int w = 0; w < width / in_word; ++w) {
        const Word<E> word = reinterpret_cast<const Word<E>*>(from)[w];
        RADAM_UNROLL
        for (int i = 0; i < in_word; ++i) elements[w * in_word + i] = word.elements[i];
      }
    } else {
      RADAM_UNROLL
      for (int i = 0; i < width; ++i) elements[i] = from[i];
    }
  }

  RADAM_INLINE void store(E* to) const {
    if constexpr (width * sizeof(E) >= kWord) {
      constexpr int in_word = kWord / sizeof(E);
      RADAM_UNROLL
      for (int w = 0; w < width / in_word; ++w) {
        Word<E> word;
        RADAM_UNROLL
        for (int i = 0; i < in_word; ++i) word.elements[i] = elements[w * in_word + i];
        reinterpret_cast<Word<E>*>(to)[w] = word;
      }
    } else {
      RADAM_UNROLL
      for (int i = 0; i < width; ++i) to[i] = elements[i];
    }
  }
};

RADAM_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

constexpr int larger(int a, int b) {
  return a > b ? a : b;
}

// The segment that holds scalar `begin`: the last one that starts at or before it. Tensors of like
// sizes are found at the guess.
RADAM_INLINE std::int64_t find(const Segment* segments, std::int64_t count, std::int64_t begin,
                               std::int64_t guess) {
  std::int64_t low = 0, high = count;
  const auto narrow = [&](std::int64_t at) {
    if (low < at && at < high) (segments[at].first <= begin ? low : high) = at;
  };
  narrow(guess);
  narrow(guess + 1);
  while (high - low > 1) narrow(low + (high - low) / 2);
  return low;
}

}  // namespace detail

// The stored types of a launch: parameter, gradient and moments.
template <typename P, typename G, typename M, bool amsgrad>
class Chunk {
  static constexpr int kNarrowest = sizeof(P) < sizeof(G)
                                        ? (sizeof(P) < sizeof(M) ? sizeof(P) : sizeof(M))
                                        : (sizeof(G) < sizeof(M) ? sizeof(G) : sizeof(M));

 public:
  // Scalars that fill a word of the narrowest type.
  static constexpr int kWidth = kWord / kNarrowest;
  // Such packs that a thread works on at once: float32 has two, for more loads in flight.
  static constexpr int kPacks =
      detail::larger(1, (sizeof(P) == 8 || sizeof(G) == 8 ? 4 : 8) / kWidth);

  RADAM_INLINE Chunk(const Segment& s, std::int64_t offset)
      : param_(static_cast<P*>(s.param) + offset),
        grad_(static_cast<const G*>(s.grad) + offset),
        exp_avg_(static_cast<M*>(s.exp_avg) + offset),
        exp_avg_sq_(static_cast<M*>(s.exp_avg_sq) + offset),
        max_exp_avg_sq_(amsgrad ? static_cast<M*>(s.max_exp_avg_sq) + offset : nullptr),
        count_(static_cast<int>(detail::smaller(kChunk, s.numel - offset))) {
    detail::assume_global(param_, grad_, exp_avg_, exp_avg_sq_);
    if constexpr (amsgrad) detail::assume_global(max_exp_avg_sq_);
  }

  template <typename T>
  RADAM_INLINE void step(int thread, Update update, const Coefficients<T>& c) const {
    int done = 0;
    if (is_aligned()) {
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
  RADAM_INLINE bool is_aligned() const {
    const auto address = [](const void* pointer) {
      return reinterpret_cast<std::uintptr_t>(pointer);
    };
    const std::uintptr_t all = address(param_) | address(grad_) | address(exp_avg_) |
                               address(exp_avg_sq_) | address(max_exp_avg_sq_);
    return all % kWord == 0;
  }

  // Packs `first`, `first + kThreads`, ... of the chunk, as far as there are any: neighbouring
  // threads touch neighbouring words.
  template <int width, int packs, typename T>
  RADAM_INLINE void step_packs(int first, int end, Update update, const Coefficients<T>& c) const {
    detail::Pack<P, width> param[packs];
    detail::Pack<G, width> grad[packs];
    detail::Pack<M, width> exp_avg[packs], exp_avg_sq[packs], max_exp_avg_sq[packs];
    RADAM_UNROLL
    for (int k = 0; k < packs; ++k) {
      const int pack = first + k * kThreads;
      if (k > 0 && pack >= end) break;
      const int at = pack * width;
      param[k].load(param_ + at);
      grad[k].load(grad_ + at);
      exp_avg[k].load(exp_avg_ + at);
      exp_avg_sq[k].load(exp_avg_sq_ + at);
      if constexpr (amsgrad) max_exp_avg_sq[k].load(max_exp_avg_sq_ + at);
    }
    RADAM_UNROLL
    for (int k = 0; k < packs; ++k) {
      const int pack = first + k * kThreads;
      if (k > 0 && pack >= end) break;
      update_pack(param[k], grad[k], exp_avg[k], exp_avg_sq[k], max_exp_avg_sq[k], update, c);
      const int at = pack * width;
      param[k].store(param_ + at);
      exp_avg[k].store(exp_avg_ + at);
      exp_avg_sq[k].store(exp_avg_sq_ + at);
      if constexpr (amsgrad) max_exp_avg_sq[k].store(max_exp_avg_sq_ + at);
    }
  }

  template <Update update, bool l2, int width, typename T>
  static RADAM_INLINE void update_pack(detail::Pack<P, width>& param,
                                       const detail::Pack<G, width>& grad,
                                       detail::Pack<M, width>& exp_avg,
                                       detail::Pack<M, width>& exp_avg_sq,
                                       detail::Pack<M, width>& max_exp_avg_sq,
                                       const Coefficients<T>& c) {
    RADAM_UNROLL
    for (int i = 0; i < width; ++i) {
      T p = load(param.elements[i]);
      T m = load(exp_avg.elements[i]);
      T v = load(exp_avg_sq.elements[i]);
      T s{};
      if constexpr (amsgrad) s = load(max_exp_avg_sq.elements[i]);
      update_element<update, l2, amsgrad>(p, static_cast<T>(load(grad.elements[i])), m, v, s, c);
      store(param.elements[i], p);
      store(exp_avg.elements[i], m);
      store(exp_avg_sq.elements[i], v);
      if constexpr (amsgrad) store(max_exp_avg_sq.elements[i], s);
    }
  }

  // The kind of update is known only on the device where steps are counted there.
  template <int width, typename T>
  static RADAM_INLINE void update_pack(detail::Pack<P, width>& param,
                                       const detail::Pack<G, width>& grad,
                                       detail::Pack<M, width>& exp_avg,
                                       detail::Pack<M, width>& exp_avg_sq,
                                       detail::Pack<M, width>& max_exp_avg_sq, Update update,
                                       const Coefficients<T>& c) {
    const auto run = [&](auto l2) {
      constexpr bool with_l2 = decltype(l2)::value;
      if (update == Update::rectified) {
        update_pack<Update::rectified, with_l2>(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq,
                                                c);
      } else if (update == Update::momentum) {
        update_pack<Update::momentum, with_l2>(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c);
      } else {
        update_pack<Update::none, with_l2>(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c);
      }
    };
    if (c.l2 != 0) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }
  }

  P* param_;
  const G* grad_;
  M *exp_avg_, *exp_avg_sq_, *max_exp_avg_sq_;
  int count_;
};

template <typename P, typename G, typename M, bool amsgrad>
RADAM_INLINE void step_thread(const StepArguments& a, std::int64_t block, int thread) {
  using T = std::conditional_t<std::is_same_v<P, double>, double, float>;
  const Segment* const segments = a.segments != nullptr ? a.segments : a.few_segments;
  const StepCoefficients* const coefficients =
      a.coefficients != nullptr ? a.coefficients : a.few_coefficients;
  const std::int64_t begin = block * kChunk;
  const auto guess = static_cast<std::int64_t>(static_cast<float>(block) * a.segments_per_block);
  const Segment& s = segments[detail::find(segments, a.count, begin, guess)];
  const StepCoefficients& step = coefficients[s.coefficients];
  if (step.update == Update::skipped) return;
  Chunk<P, G, M, amsgrad>(s, begin - s.first).step(thread, step.update, round_to<T>(step.values));
}

// Calls `call` with the types of a launch: gradient and moment, each in a Type, and whether there
// is amsgrad. P is the parameter's.
template <typename E>
struct Type {
  using type = E;
};

template <typename P, typename Call>
auto for_types(const SegmentTypes& types, bool amsgrad, const Call& call) {
  using T = std::conditional_t<std::is_same_v<P, double>, double, float>;
  const auto with_moment = [&](auto grad, auto moment) {
    return amsgrad ? call(grad, moment, std::true_type{}) : call(grad, moment, std::false_type{});
  };
  const auto with_grad = [&](auto grad) {
    if constexpr (!std::is_same_v<P, T>) {
      if (types.exp_avg == types.param) return with_moment(grad, Type<P>{});
    }
    return with_moment(grad, Type<T>{});
  };
  switch (types.grad) {
    case DType::float64:
      return with_grad(Type<double>{});
    case DType::bfloat16:
      return with_grad(Type<BFloat16>{});
    case DType::float16:
      return with_grad(Type<Half>{});
    default:
      return with_grad(Type<float>{});
  }
}

RADAM_INLINE void upload_thread(const UploadArguments& a, std::int64_t index) {
  if (index < a.count) a.to[index] = a.words[index];
}

RADAM_INLINE void prologue_thread(const PrologueArguments& a, std::int64_t index) {
  if (index >= a.count) return;
  const std::int64_t row = a.segments[index].coefficients;
  if (a.found_inf != nullptr && *a.found_inf != 0) {
    a.coefficients[row].update = Update::skipped;
    return;
  }
  StepOptions options = a.options;
  if (a.lr != nullptr) {
    options.lr = a.lr_is_float64 ? *static_cast<const double*>(a.lr)
                                 : static_cast<double>(*static_cast<const float*>(a.lr));
  }
  if (a.grad_scale != nullptr) options.grad_scale = static_cast<double>(*a.grad_scale);
  // Counted in the counter's own precision, as torch counts.
  double step;
  if (a.counters_are_float64) {
    step = static_cast<double*>(a.counters)[row] += 1;
  } else {
    step = static_cast<float*>(a.counters)[row] += 1;
  }
  a.coefficients[row] = coefficients(static_cast<std::int64_t>(step), options);
}

}  // namespace radam::cuda
