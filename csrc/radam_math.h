// The Rectified Adam update of one element (arXiv 1908.03265, Algorithm 2): the only C++ statement
// of it, shared by every compiled engine. Each operation is rounded to nearest even, in this order;
// translation units that include it are built without contraction into fused multiply-adds.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define RADAM_INLINE __host__ __device__ __forceinline__
#else
#define RADAM_INLINE inline __attribute__((always_inline))
#endif

namespace radam {

// What one step does to the parameter.
enum class Update : int {
  none = 0,      // not rectified, no fallback: only the moments move
  momentum = 1,  // not rectified: SGD with momentum
  rectified = 2  // rectified adaptive step
};

// The coefficients of one step, uniform over every element with the same step count.
template <typename T>
struct Coefficients {
  T grad_mul;         // -1 to maximize; carries any rescaling of the gradient
  T l2;               // weight of the parameter in the gradient
  T decay;            // factor on the parameter, 1 for none
  T one_minus_beta1;  // weight of the gradient in exp_avg
  T beta2;            // weight of the past in exp_avg_sq
  T one_minus_beta2;  // weight of the squared gradient in exp_avg_sq
  T step_size;        // learning rate with bias corrections and r_t folded in
  T eps;              // added to the root of exp_avg_sq
};

namespace detail {
RADAM_INLINE float root(float x) {
  return sqrtf(x);
}
RADAM_INLINE double root(double x) {
  return sqrt(x);
}
}  // namespace detail

template <Update update, bool l2, bool amsgrad, typename T>
RADAM_INLINE void update_element(T& param, T grad, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq,
                                 const Coefficients<T>& c) {
  T g = grad * c.grad_mul;
  // A zero weight must not turn an infinite parameter into a NaN gradient.
  if constexpr (l2) g = g + param * c.l2;
  T p = param * c.decay;
  const T m = exp_avg + (g - exp_avg) * c.one_minus_beta1;
  const T v = exp_avg_sq * c.beta2 + (g * g) * c.one_minus_beta2;
  T s = v;
  if constexpr (amsgrad) {
    // As torch.maximum: a NaN on either side wins.
    s = (v > max_exp_avg_sq) | (v != v) ? v : max_exp_avg_sq;
    max_exp_avg_sq = s;
  }
  if constexpr (update == Update::rectified) {
    p = p - (m * c.step_size) / (detail::root(s) + c.eps);
  } else if constexpr (update == Update::momentum) {
    p = p - m * c.step_size;
  }
  param = p;
  exp_avg = m;
  exp_avg_sq = v;
}

}  // namespace radam
