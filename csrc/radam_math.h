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
  skipped = 3     // an overflow, or an unwanted norm: nothing changes, not even the moments
};

// The coefficients of a step, the same for all elements with the same step count.
template <typename T>
struct Coefficients {
  T grad_mul;         // factor of the gradient: 1, or -1 to maximize, divided by its scale, clipped
  T l2;               // factor of the parameter in the gradient, 0 for none
  T decay;            // factor of the parameter, 1 for none
  T one_minus_beta1;  // weight of the gradient in exp_avg
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

// The update of a moment with weight w: old + (new - old) w, whose weights sum to 1 exactly. For w
// above 1/2, where that difference would lose a small new value, it is old (1 - w) + new w; 1 - w
// is exact there. Both are old keep + (new - old drop) w, without a branch.
template <typename T>
struct Weights {
  T keep, drop, w;
};

template <typename T>
RADAM_INLINE Weights<T> weights(T w) {
  return w > T(0.5) ? Weights<T>{T(1) - w, T(0), w} : Weights<T>{T(1), T(1), w};
}
}  // namespace detail

template <Update update, bool l2, bool amsgrad, typename T>
RADAM_INLINE void update_element(T& param, T grad, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq,
                                 const Coefficients<T>& c) {
  T g = grad * c.grad_mul;
  // A zero weight must not turn an infinite parameter into a NaN gradient.
  if constexpr (l2) g = g + param * c.l2;
  T p = param * c.decay;
  const auto first = detail::weights(c.one_minus_beta1),
             second = detail::weights(c.one_minus_beta2);
  const T m = exp_avg * first.keep + (g - exp_avg * first.drop) * first.w;
  // g w comes first: g g would overflow earlier.
  const T v =
      exp_avg_sq * second.keep + (g * (g * second.w) - exp_avg_sq * (second.drop * second.w));
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

// The coefficients of a step and its kind. A row of a launch's table, in its arithmetic type; the
// alignment lets a kernel read a row in 16-byte words.
template <typename T>
struct alignas(16) StepCoefficients {
  Coefficients<T> values;
  Update update;
};

// Rounds float64 coefficients to the arithmetic type, once per step.
template <typename T>
RADAM_INLINE StepCoefficients<T> round_to(const StepCoefficients<double>& row) {
  const Coefficients<double>& c = row.values;
  return {{static_cast<T>(c.grad_mul), static_cast<T>(c.l2), static_cast<T>(c.decay),
           static_cast<T>(c.one_minus_beta1), static_cast<T>(c.one_minus_beta2),
           static_cast<T>(c.step_size), static_cast<T>(c.eps)},
          row.update};
}

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
// The unevaluated sum of two float64 numbers: about 106 bits. The algorithms are those of T. J.
// Dekker, "A floating-point technique for extending the available precision", 1971, for positive
// numbers.
struct Pair {
  double high, low;
};

// high + low, of which low is smaller.
RADAM_INLINE Pair normalized(double high, double low) {
  const double sum = high + low;
  return {sum, low - (sum - high)};
}

RADAM_INLINE Pair operator+(const Pair& a, const Pair& b) {
  const double sum = a.high + b.high;
  const double from_b = sum - a.high;
  const double error = (a.high - (sum - from_b)) + (b.high - from_b);
  return normalized(sum, error + (a.low + b.low));
}

RADAM_INLINE Pair split(double x) {
  const double scaled = x * 134217729.0;  // 2^27 + 1
  const double high = scaled - (scaled - x);
  return {high, x - high};
}

RADAM_INLINE Pair operator*(const Pair& a, const Pair& b) {
  const double product = a.high * b.high;
  const Pair x = split(a.high), y = split(b.high);
  const double error =
      ((x.high * y.high - product) + x.high * y.low + x.low * y.high) + x.low * y.low;
  return normalized(product, error + (a.high * b.low + a.low * b.high));
}

RADAM_INLINE Pair operator*(const Pair& a, double b) {
  return a * Pair{b, 0};
}

RADAM_INLINE Pair operator+(const Pair& a, double b) {
  return a + Pair{b, 0};
}

struct Sums {
  Pair total;     // of beta^k for k < count
  Pair weighted;  // of (k + 1) beta^k for k < count
};

// Sums over more steps do not differ for any beta but those beside 1.
constexpr double kMostSteps = 9007199254740992.0;  // 2^53

// The same operations as _geometric() in radam_fused.rectification.
RADAM_INLINE Sums geometric(double beta, double count) {
  const auto steps = static_cast<std::int64_t>(count < kMostSteps ? count : kMostSteps);
  Pair power{1, 0}, total{0, 0}, weighted{0, 0};
  double n = 0;
  std::int64_t bit = 1;
  while (bit <= steps / 2) bit *= 2;
  for (; bit > 0; bit /= 2) {
    weighted = weighted + power * (total * n + weighted);
    total = total + power * total;
    power = power * power;
    n *= 2;
    if (steps & bit) {
      total = total + power;
      n += 1;
      weighted = weighted + power * n;
      power = power * beta;
    }
  }
  // The sums over one step, halved again and again, for the fraction of an averaged step count.
  double rest = count < kMostSteps ? count - static_cast<double>(steps) : 0, part = 1;
  double part_power = beta, part_total = 1, part_weighted = 1;
  while (rest > 0) {
    part *= 0.5;
    part_power = root(part_power);
    part_total = part_total / (1.0 + part_power);
    part_weighted = (part_weighted - part_power * part * part_total) / (1.0 + part_power);
    if (rest >= part) {
      rest -= part;
      weighted = weighted + power * (n * part_total + part_weighted);
      total = total + power * part_total;
      power = power * part_power;
      n += part;
    }
  }
  return {total, weighted};
}

// 1 - beta^count.
RADAM_INLINE double bias_correction(double beta, const Sums& sums) {
  return ((Pair{1, 0} + -beta) * sums.total).high;
}

// 2 weighted / total - 1, which is rho_t.
RADAM_INLINE double rho(const Sums& sums) {
  const double quotient = sums.weighted.high / sums.total.high;
  const Pair rest = sums.weighted + sums.total * -quotient;
  return (Pair{2.0 * quotient, 2.0 * (rest.high / sums.total.high)} + -1.0).high;
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

// What a step does with the norm of the gradients.
struct ClipOptions {
  double max_norm;         // infinity: no clipping
  double skip_above;       // infinity: no norm is too large
  double skips_nonfinite;  // 1: a step with an infinite norm or NaN is skipped
};

// The norm of all gradients of a step, and what follows from it.
struct Clip {
  double norm;         // of the gradients divided by their scale
  double coefficient;  // factor of the gradients
  double skips;        // 1: the step is skipped
};

// As torch.nn.utils.clip_grad_norm_, in float64. square_sum: the sum of the squares of the
// gradients, multiplied by their scale.
RADAM_INLINE Clip clip(double square_sum, double grad_scale, const ClipOptions& o) {
  Clip result{detail::root(square_sum) / grad_scale, 1.0, 0.0};
  if (o.max_norm < HUGE_VAL) {
    const double coefficient = o.max_norm / (result.norm + 1e-6);
    result.coefficient = coefficient > 1.0 ? 1.0 : coefficient;  // NaN stays NaN
  }
  const bool is_finite = result.norm < HUGE_VAL;
  result.skips = result.norm > o.skip_above || (o.skips_nonfinite != 0 && !is_finite) ? 1.0 : 0.0;
  return result;
}

// Whether a step counter holds a count: not NaN, infinite or negative.
RADAM_INLINE bool is_count(double count) {
  return count >= 0 && count < HUGE_VAL;
}

// The terms of the coefficients that depend only on the step count, the decay rates and the options
// of rectification. Parameter groups that differ in other options share them.
struct StepTerms {
  double correction1;       // 1 - beta1^t
  double root_correction2;  // sqrt(1 - beta2^t)
  double r_t;               // 0 if the step is not rectified, 1 without rectification
};

RADAM_INLINE StepTerms step_terms(double step, const StepOptions& o) {
  const detail::Sums sums = detail::geometric(o.beta2, step);
  StepTerms terms{detail::bias_correction(o.beta1, detail::geometric(o.beta1, step)),
                  detail::root(detail::bias_correction(o.beta2, sums)), 1.0};
  if (o.rectify != 0) {
    const bool exact = o.exact_rectification != 0;
    const double limit = 2.0 / (1.0 - o.beta2) - 1.0;
    double rho = detail::rho(sums);
    rho = limit < rho ? limit : rho;
    terms.r_t = rho > o.rectify_threshold
                    ? detail::root(detail::variance(limit, exact) / detail::variance(rho, exact))
                    : 0.0;
  }
  return terms;
}

// The same bits as radam_fused.rectification.coefficients(), whose docstring gives the sources.
RADAM_INLINE StepCoefficients<double> coefficients(const StepTerms& terms, const StepOptions& o,
                                                   double grad_scale, double clip_coefficient) {
  Update update = Update::none;
  double step_size = 0.0;
  const bool moves = o.lr != 0;
  if (!moves) {
    // A step with learning rate 0 changes no parameter.
  } else if (terms.r_t > 0.0) {
    update = Update::rectified;
    step_size = o.lr * terms.r_t * terms.root_correction2 / terms.correction1;
  } else if (o.degenerated_to_sgd != 0) {
    update = Update::momentum;
    step_size = o.lr / terms.correction1;
  }
  const bool decoupled = o.decoupled_weight_decay != 0;
  double decay = 1.0;
  if (decoupled && moves && (update != Update::none || o.decay_skipped_steps != 0)) {
    decay = o.absolute_weight_decay != 0 ? 1.0 - o.weight_decay : 1.0 - o.lr * o.weight_decay;
  }
  return {{(o.maximize != 0 ? -1.0 : 1.0) / grad_scale * clip_coefficient,
           decoupled ? 0.0 : o.weight_decay, decay, 1.0 - o.beta1, 1.0 - o.beta2, step_size,
           o.eps_after_bias_correction != 0 ? o.eps * terms.root_correction2 : o.eps},
          update};
}

}  // namespace radam
