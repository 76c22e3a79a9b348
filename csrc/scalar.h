// The stored types, and their conversion to and from the arithmetic type. Widening is exact;
// narrowing rounds to nearest even. Integer arithmetic without branches, so that loops vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "radam_math.h"

namespace radam {

struct BFloat16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

enum class DType : std::uint8_t { float64, float32, bfloat16, float16, int16 };

namespace detail {
RADAM_INLINE std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
RADAM_INLINE float float_from(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
}  // namespace detail

RADAM_INLINE double load(double x) {
  return x;
}
RADAM_INLINE float load(float x) {
  return x;
}
RADAM_INLINE float load(BFloat16 x) {
  return detail::float_from(static_cast<std::uint32_t>(x.bits) << 16);
}
RADAM_INLINE float load(Half x) {
#if defined(__CUDA_ARCH__)
  float result;  // one instruction for the code below
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  const std::uint32_t rebias = 112u << 23;  // 127 - 15
  // Infinity and NaN need the bias difference twice to reach float's all-ones exponent.
  const std::uint32_t normal = (magnitude << 13) + rebias + (magnitude >= 0x7c00u ? rebias : 0u);
  const std::uint32_t subnormal =
      detail::float_bits(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  return detail::float_from(sign | (magnitude < 0x0400u ? subnormal : normal));
#endif
}

RADAM_INLINE void store(double& to, double x) {
  to = x;
}
RADAM_INLINE void store(float& to, float x) {
  to = x;
}
RADAM_INLINE void store(BFloat16& to, float x) {
  const std::uint32_t bits = detail::float_bits(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<std::uint16_t>(x != x ? 0x7fc0u : rounded);
}
// Rounds up with the probability that leaves the expectation at x, given 16 random bits.
RADAM_INLINE void store_stochastically(BFloat16& to, float x, std::uint32_t random) {
  const std::uint32_t rounded = (detail::float_bits(x) + random) >> 16;
  to.bits = static_cast<std::uint16_t>(x != x ? 0x7fc0u : rounded);
}

// A float32 number as the nearest bfloat16 number (of two, the larger in magnitude) and the
// difference of their bits: 32 bits for 32 bits. A NaN becomes the canonical one.
RADAM_INLINE void store(BFloat16& to, std::int16_t& remainder, float x) {
  const std::uint32_t bits = x != x ? 0x7fc00000u : detail::float_bits(x);
  const std::uint32_t rounded = (bits + 0x8000u) >> 16;
  to.bits = static_cast<std::uint16_t>(rounded);
  remainder = static_cast<std::int16_t>(bits - (rounded << 16));
}
// The remainder of another number can be below a zero that the user has written: it is then 0.
RADAM_INLINE float load(BFloat16 x, std::int16_t remainder) {
  const std::int32_t sum = ((x.bits & 0x7fff) << 16) + remainder;
  const auto magnitude = static_cast<std::uint32_t>(sum > 0 ? sum : 0);
  return detail::float_from(magnitude | (static_cast<std::uint32_t>(x.bits & 0x8000u) << 16));
}

RADAM_INLINE void store(Half& to, float x) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const std::uint32_t bits = detail::float_bits(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal =
      ((magnitude + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  // |x| * 2^24 is x in units of the smallest subnormal; adding 1.5 * 2^23 rounds it to an integer
  // in the low bits.
  const std::uint32_t subnormal =
      detail::float_bits(detail::float_from(magnitude) * 0x1p24f + 0x1.8p23f) - 0x4b400000u;
  std::uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x47800000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  to.bits = static_cast<std::uint16_t>(sign | result);
#endif
}

// A 16-bit number and its float32 copy. The value is the copy, or the number where it is not the
// copy, rounded: where the user has written it.
template <typename E>
RADAM_INLINE float load(E x, float copy) {
  E rounded;
  store(rounded, copy);
  return rounded.bits == x.bits ? copy : load(x);
}
template <typename E>
RADAM_INLINE void store(E& to, float& copy, float x) {
  store(to, x);
  copy = x;
}

}  // namespace radam
