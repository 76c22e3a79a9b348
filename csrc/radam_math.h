// Rectified Adam (arXiv 1908.03265, Algorithm 2): the coefficients of a step and the update of one
// element. This is the only mathematics in C++ and CUDA. Each operation is rounded to nearest even,
// in this order: every file that includes it is built without fused multiply-adds.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(RADAM_INLINE)  // defined by builds of the tests, to compile fast
#elif defined(__CUDACC__)
#define RADAM_INLINE __host__ __device__ __forceinline__
#else
#define RADAM_INLINE inline __attribute__((always_inline))
#endif

namespace radam {

// The kind of an update.
enum class Update : int {
  none = 0,       // not rectified, no fallback: only the moments change
  momentum = 1,   // not rectified: SGD with momentum
  rectified = 2,  // rectified adaptive step
  skipped = 3     // a gradient overflowed: nothing changes, not even the moments
};

// The coefficients of a step, the same for all elements with the same step count.
template <typename T>
struct Coefficients {
  T grad_mul;         // factor of the gradient: 1, or -1 to maximize, divided by its scale
  T l2;               // factor of the parameter in the gradient, 0 for none
  T decay;            // factor of the parameter, 1 for none
  T one_minus_beta1;  // weight of the gradient in exp_avg
  T beta2;            // weight of the previous value in exp_avg_sq
  T one_minus_beta2;  // weight of the squared gradient in exp_avg_sq
  T step_size;        // learning rate times the bias corrections and r_t
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
    // Like torch.maximum: a NaN in either operand gives NaN.
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

// The coefficients before they are rounded to the arithmetic type.
struct StepCoefficients {
  Coefficients<double> values;
  Update update;
};

// The options that the coefficients are computed from; radam_fused/options.py documents each.
struct StepOptions {
#define RADAM_OPTION(name) double name;
#include "options.def"
#undef RADAM_OPTION
};

constexpr const char* kOptionNames[] = {
#define RADAM_OPTION(name) #name,
#include "options.def"
#undef RADAM_OPTION
};
constexpr int kOptions = sizeof(StepOptions) / sizeof(double);

namespace detail {
struct Sums {
  double total;     // of beta^k for k < count
  double weighted;  // of (k + 1) beta^k for k < count
};

// The same operations as _geometric() in radam_fused.rectification: doubling, with positive terms.
RADAM_INLINE Sums geometric(double beta, std::int64_t count) {
  double n = 0, power = 1, total = 0, weighted = 0;
  std::int64_t bit = 1;
  while (bit <= count / 2) bit *= 2;
  for (; bit > 0; bit /= 2) {
    weighted += power * (n * total + weighted);
    total += power * total;
    power *= power;
    n *= 2;
    if (count & bit) {
      total += power;
      n += 1;
      weighted += n * power;
      power *= beta;
    }
  }
  return {total, weighted};
}

// The same operations as variance() in radam_fused.rectification.
RADAM_INLINE double variance(double rho, bool exact) {
  if (!exact) return rho / (2.0 * (rho - 2.0) * (rho - 4.0));
  constexpr int kShifts = 8;
  const double y = 2.0 * (rho + 2.0 * kShifts) - 3.0;
  const double w = 1.0 / (y * y);
  double rest = 0.0;
  rest = (rest + 29412432709.0 / 2048.0) * w;
  rest = (rest - 233526463.0 / 1024.0) * w;
  rest = (rest + 1319183.0 / 256.0) * w;
  rest = (rest - 22931.0 / 128.0) * w;
  rest = (rest + 173.0 / 16.0) * w;
  rest = (rest - 11.0 / 8.0) * w;
  rest = (rest + 1.0 / 2.0) * w;
  double share = 2.0 / y * (1.0 / (y - 1.0) + rest);
  for (int k = kShifts - 1; k >= 0; --k) {
    const double x = rho + 2.0 * k;
    share = (x * x * (x - 2.0) * share + 1.0) / ((x - 2.0) * ((x - 1.0) * (x - 1.0)));
  }
  return rho * share;
}
}  // namespace detail

// The terms of the coefficients that depend only on the step count, the decay rates and the options
// of rectification. Parameter groups that differ in other options share them.
struct StepTerms {
  double correction1;       // 1 - beta1^t
  double root_correction2;  // sqrt(1 - beta2^t)
  double r_t;               // 0 if the step is not rectified, 1 without rectification
};

RADAM_INLINE StepTerms step_terms(std::int64_t step, const StepOptions& o) {
  const detail::Sums sums = detail::geometric(o.beta2, step);
  StepTerms terms{(1.0 - o.beta1) * detail::geometric(o.beta1, step).total,
                  detail::root((1.0 - o.beta2) * sums.total), 1.0};
  if (o.rectify != 0) {
    const bool exact = o.exact_rectification != 0;
    const double limit = 2.0 / (1.0 - o.beta2) - 1.0;
    double rho = 2.0 * sums.weighted / sums.total - 1.0;
    rho = limit < rho ? limit : rho;
    terms.r_t = rho > o.rectify_threshold
                    ? detail::root(detail::variance(limit, exact) / detail::variance(rho, exact))
                    : 0.0;
  }
  return terms;
}

// The same bits as radam_fused.rectification.coefficients(), whose docstring gives the sources.
RADAM_INLINE StepCoefficients coefficients(const StepTerms& terms, const StepOptions& o,
                                           double grad_scale) {
  Update update = Update::none;
  double step_size = 0.0;
  if (terms.r_t > 0.0) {
    update = Update::rectified;
    step_size = o.lr * terms.r_t * terms.root_correction2 / terms.correction1;
  } else if (o.degenerated_to_sgd != 0) {
    update = Update::momentum;
    step_size = o.lr / terms.correction1;
  }
  const bool decoupled = o.decoupled_weight_decay != 0;
  double decay = 1.0;
  if (decoupled && (update != Update::none || o.decay_skipped_steps != 0)) {
    decay = o.absolute_weight_decay != 0 ? 1.0 - o.weight_decay : 1.0 - o.lr * o.weight_decay;
  }
  return {{(o.maximize != 0 ? -1.0 : 1.0) / grad_scale, decoupled ? 0.0 : o.weight_decay, decay,
           1.0 - o.beta1, o.beta2, 1.0 - o.beta2, step_size,
           o.eps_after_bias_correction != 0 ? o.eps * terms.root_correction2 : o.eps},
          update};
}

}  // namespace radam
