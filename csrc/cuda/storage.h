// How kernels load and store the values that update_element works on: the stored type of each role,
// and packs of neighbouring elements that are moved in 16-byte words.
#pragma once

#include <algorithm>
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

constexpr int kWord = 16;  // bytes of the widest load and store on every device

namespace detail {

template <typename E>
struct alignas(kWord) Word {
  E elements[kWord / sizeof(E)];
};

// `width` consecutive elements of an array; moved in whole words if they fill at least one.
template <typename E, int width>
struct Elements {
  static constexpr int kInWord = kWord / sizeof(E);

  E elements[width];

  RADAM_INLINE void load(const E* from) {
    if constexpr (width >= kInWord) {
      RADAM_UNROLL
      for (int w = 0; w < width / kInWord; ++w) {
        const Word<E> word = reinterpret_cast<const Word<E>*>(from)[w];
        RADAM_UNROLL
        for (int i = 0; i < kInWord; ++i) elements[w * kInWord + i] = word.elements[i];
      }
    } else {
      RADAM_UNROLL
      for (int i = 0; i < width; ++i) elements[i] = from[i];
    }
  }

  RADAM_INLINE void store(E* to) const {
    if constexpr (width >= kInWord) {
      RADAM_UNROLL
      for (int w = 0; w < width / kInWord; ++w) {
        Word<E> word;
        RADAM_UNROLL
        for (int i = 0; i < kInWord; ++i) word.elements[i] = elements[w * kInWord + i];
        reinterpret_cast<Word<E>*>(to)[w] = word;
      }
    } else {
      RADAM_UNROLL
      for (int i = 0; i < width; ++i) to[i] = elements[i];
    }
  }
};

// Says that an address read from a table is in global memory, so that no access tests for it.
template <typename E>
RADAM_INLINE E* in_device_memory(E* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// The elements of a role, starting at `offset`.
template <typename E>
RADAM_INLINE E* array(const Segment& s, int role, std::int64_t offset) {
  return in_device_memory(static_cast<E*>(s.at[role]) + offset);
}

}  // namespace detail

// How a value is rounded to bfloat16.
struct Rounding {
  bool is_stochastic;
  std::uint32_t random;  // 16 random bits
};

// A value that is stored in one role as an array of E. A format that needs several roles is a
// specialisation with the same members.
template <int role, typename E>
class Stored {
 public:
  using Element = E;  // corresponds to the launch's DType of the role
  static constexpr int kNarrowest = sizeof(E);
  static constexpr int kWidest = sizeof(E);

  RADAM_INLINE Stored(const Segment& s, std::int64_t offset)
      : array_(detail::array<E>(s, role, offset)) {}

  // The union of the bits of its addresses.
  RADAM_INLINE std::uintptr_t address_bits() const {
    return reinterpret_cast<std::uintptr_t>(array_);
  }

  template <int width>
  class Pack {
   public:
    RADAM_INLINE void load(const Stored& from, int at) { stored_.load(from.array_ + at); }
    RADAM_INLINE void store(const Stored& to, int at) const { stored_.store(to.array_ + at); }

    template <typename T>
    RADAM_INLINE T get(int i) const {
      return static_cast<T>(radam::load(stored_.elements[i]));
    }
    template <typename T>
    RADAM_INLINE void set(int i, T value, Rounding rounding) {
      if constexpr (std::is_same_v<E, BFloat16>) {
        if (rounding.is_stochastic) {
          store_stochastically(stored_.elements[i], value, rounding.random);
          return;
        }
      }
      radam::store(stored_.elements[i], value);
    }

   private:
    detail::Elements<E, width> stored_;
  };

 private:
  E* array_;
};

// The element type of a role that the launch does not have.
struct Absent {};

template <int role>
class Stored<role, Absent> {
 public:
  static constexpr int kNarrowest = kWord;
  static constexpr int kWidest = 0;

  RADAM_INLINE Stored(const Segment&, std::int64_t) {}
  RADAM_INLINE std::uintptr_t address_bits() const { return 0; }

  template <int width>
  struct Pack {
    RADAM_INLINE void load(const Stored&, int) {}
    RADAM_INLINE void store(const Stored&, int) const {}
    template <typename T>
    RADAM_INLINE T get(int) const {
      return T{};
    }
    template <typename T>
    RADAM_INLINE void set(int, T, Rounding) {}
  };
};

// A value that is stored in a role as E, with a master in another role as B.
template <int role, typename E, int beside, typename B>
class WithMaster {
 public:
  using Element = E;
  static constexpr int kNarrowest = std::min(sizeof(E), sizeof(B));
  static constexpr int kWidest = std::max(sizeof(E), sizeof(B));

  RADAM_INLINE WithMaster(const Segment& s, std::int64_t offset)
      : array_(detail::array<E>(s, role, offset)), masters_(detail::array<B>(s, beside, offset)) {}

  RADAM_INLINE std::uintptr_t address_bits() const {
    return reinterpret_cast<std::uintptr_t>(array_) | reinterpret_cast<std::uintptr_t>(masters_);
  }

  template <int width>
  class Pack {
   public:
    RADAM_INLINE void load(const WithMaster& from, int at) {
      stored_.load(from.array_ + at);
      masters_.load(from.masters_ + at);
    }
    RADAM_INLINE void store(const WithMaster& to, int at) const {
      stored_.store(to.array_ + at);
      masters_.store(to.masters_ + at);
    }

    template <typename T>
    RADAM_INLINE T get(int i) const {
      return radam::load(stored_.elements[i], masters_.elements[i]);
    }
    template <typename T>
    RADAM_INLINE void set(int i, T value, Rounding) {
      radam::store(stored_.elements[i], masters_.elements[i], value);
    }

   private:
    detail::Elements<E, width> stored_;
    detail::Elements<B, width> masters_;
  };

 private:
  E* array_;
  B* masters_;
};

// The formats of a parameter with a master: bfloat16 and the other 16 bits of float32; and a 16-bit
// number and a float32 copy.
struct SplitBFloat16 {};
struct MasteredBFloat16 {};
struct MasteredHalf {};

template <int role>
class Stored<role, SplitBFloat16>
    : public WithMaster<role, BFloat16, role::param_remainder, std::int16_t> {
  using WithMaster<role, BFloat16, role::param_remainder, std::int16_t>::WithMaster;
};
template <int role>
class Stored<role, MasteredBFloat16>
    : public WithMaster<role, BFloat16, role::master_param, float> {
  using WithMaster<role, BFloat16, role::master_param, float>::WithMaster;
};
template <int role>
class Stored<role, MasteredHalf> : public WithMaster<role, Half, role::master_param, float> {
  using WithMaster<role, Half, role::master_param, float>::WithMaster;
};

// The arithmetic type of a parameter that is stored as P.
template <typename P>
using Arithmetic = std::conditional_t<std::is_same_v<P, double>, double, float>;

// The values of one element, in the arithmetic type.
template <typename T>
struct Values {
  T param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq;
};

// The arrays of a segment, starting at an offset: the parameter stored as P, the gradient as G and
// the moments as M. with_draws: whether values are rounded stochastically.
template <typename P, typename G, typename M, bool with_amsgrad, bool with_draws>
class Storage {
  using Param = Stored<role::param, P>;
  using Grad = Stored<role::grad, G>;
  using ExpAvg = Stored<role::exp_avg, M>;
  using ExpAvgSq = Stored<role::exp_avg_sq, M>;
  using MaxExpAvgSq = Stored<role::max_exp_avg_sq, std::conditional_t<with_amsgrad, M, Absent>>;

 public:
  using T = Arithmetic<P>;
  static constexpr bool amsgrad = with_amsgrad;
  static constexpr bool draws = with_draws;
  static constexpr int kNarrowest =
      std::min({Param::kNarrowest, Grad::kNarrowest, ExpAvg::kNarrowest});
  static constexpr int kWidest = std::max({Param::kWidest, Grad::kWidest, ExpAvg::kWidest});

  RADAM_INLINE Storage(const Segment& s, std::int64_t offset)
      : param_(s, offset),
        grad_(s, offset),
        exp_avg_(s, offset),
        exp_avg_sq_(s, offset),
        max_exp_avg_sq_(s, offset) {}

  // Whether every array starts on a word boundary.
  RADAM_INLINE bool is_aligned() const {
    const std::uintptr_t bits = param_.address_bits() | grad_.address_bits() |
                                exp_avg_.address_bits() | exp_avg_sq_.address_bits() |
                                max_exp_avg_sq_.address_bits();
    return bits % kWord == 0;
  }

  // `width` consecutive elements, in their stored types.
  template <int width>
  class Pack {
   public:
    RADAM_INLINE void load(const Storage& from, int at) {
      param_.load(from.param_, at);
      grad_.load(from.grad_, at);
      exp_avg_.load(from.exp_avg_, at);
      exp_avg_sq_.load(from.exp_avg_sq_, at);
      max_exp_avg_sq_.load(from.max_exp_avg_sq_, at);
    }

    RADAM_INLINE void store(const Storage& to, int at) const {
      param_.store(to.param_, at);
      exp_avg_.store(to.exp_avg_, at);
      exp_avg_sq_.store(to.exp_avg_sq_, at);
      max_exp_avg_sq_.store(to.max_exp_avg_sq_, at);
    }

    RADAM_INLINE Values<T> get(int i) const {
      return {param_.template get<T>(i), grad_.template get<T>(i), exp_avg_.template get<T>(i),
              exp_avg_sq_.template get<T>(i), max_exp_avg_sq_.template get<T>(i)};
    }

    // roles: those that are rounded stochastically, as in Draw, with 32 random bits.
    RADAM_INLINE void set(int i, const Values<T>& values, std::uint64_t roles,
                          std::uint32_t random) {
      constexpr Rounding nearest{false, 0};
      param_.set(i, values.param, {(roles & kDrawsParam) != 0, bits_of_param(random)});
      exp_avg_.set(i, values.exp_avg, nearest);
      exp_avg_sq_.set(i, values.exp_avg_sq,
                      {(roles & kDrawsExpAvgSq) != 0, bits_of_exp_avg_sq(random)});
      max_exp_avg_sq_.set(i, values.max_exp_avg_sq, nearest);
    }

   private:
    typename Param::template Pack<width> param_;
    typename Grad::template Pack<width> grad_;
    typename ExpAvg::template Pack<width> exp_avg_;
    typename ExpAvgSq::template Pack<width> exp_avg_sq_;
    typename MaxExpAvgSq::template Pack<width> max_exp_avg_sq_;
  };

 private:
  Param param_;
  Grad grad_;
  ExpAvg exp_avg_;
  ExpAvgSq exp_avg_sq_;
  MaxExpAvgSq max_exp_avg_sq_;
};

}  // namespace radam::cuda
