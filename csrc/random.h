// Random bits for stochastic rounding, the same on every backend: a function of the seed, the step,
// the parameter, the element and the role, in integers. An element is numbered by its place in the
// memory order of the full tensor, so that the bits do not depend on how it is sharded.
#pragma once

#include <cstdint>
#include <cstring>

#include "radam_math.h"

namespace radam {

// The random bits of a parameter, and where its elements lie in the full tensor. The alignment lets
// a kernel read it in 16-byte words.
struct alignas(16) Draw {
  std::uint64_t key;       // of its bits in all steps, from parameter_key()
  std::uint64_t step_key;  // of its bits in one step, from step_key()
  std::int64_t offset;     // place of the first element
  std::int64_t run;        // elements that lie side by side, until a gap
  std::int64_t stride;     // from the start of a run to that of the next one
  std::uint64_t roles;     // that are rounded stochastically: the sum of the constants below
};
constexpr std::uint64_t kDrawsParam = 1, kDrawsExpAvgSq = 2;

namespace detail {
constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 / the golden ratio

// The finalizer of SplitMix64 with the constants of "Mix13" (D. Stafford, "Better Bit Mixing",
// 2011).
RADAM_INLINE std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
}  // namespace detail

RADAM_INLINE std::uint64_t parameter_key(std::uint64_t seed, std::uint64_t parameter) {
  return detail::mix(detail::mix(seed + detail::kGolden) ^ parameter);
}

RADAM_INLINE std::uint64_t step_key(std::uint64_t key, double step) {
  std::uint64_t bits;
  std::memcpy(&bits, &step, sizeof bits);
  return detail::mix(key ^ bits);
}

// The place of an element in the full tensor.
RADAM_INLINE std::uint64_t place_of(const Draw& draw, std::int64_t element) {
  std::int64_t place = element;
  if (element >= draw.run) {
    if (((element | draw.run) >> 32) == 0) {  // a division of 32 bits takes a fraction of the time
      const auto x = static_cast<std::uint32_t>(element),
                 run = static_cast<std::uint32_t>(draw.run);
      place = std::int64_t{x / run} * draw.stride + x % run;
    } else {
      place = element / draw.run * draw.stride + element % draw.run;
    }
  }
  return static_cast<std::uint64_t>(draw.offset + place);
}

// The key for places with the same upper 32 bits.
RADAM_INLINE std::uint64_t place_key(std::uint64_t step_key, std::uint64_t place) {
  return step_key + (place >> 32) * detail::kGolden;
}

// 32 random bits, given the lower 32 bits of a place: "lowbias32" (C. Wellons, "Prospecting for
// Hash Functions", 2018) with a key before each of its two multiplications.
RADAM_INLINE std::uint32_t random_bits(std::uint64_t key, std::uint32_t place) {
  std::uint32_t x = place + static_cast<std::uint32_t>(key);
  x = (x ^ (x >> 16)) * 0x7feb352du + static_cast<std::uint32_t>(key >> 32);
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Each role takes 16 of them.
RADAM_INLINE std::uint32_t bits_of_exp_avg_sq(std::uint32_t random) {
  return random & 0xffffu;
}
RADAM_INLINE std::uint32_t bits_of_param(std::uint32_t random) {
  return random >> 16;
}

}  // namespace radam
