// The table of memory ranges that one launch updates. A flat buffer is one segment; a model of a
// thousand tensors is a thousand segments.
#pragma once

#include <cstdint>
#include <vector>

#include "radam_math.h"
#include "scalar.h"

namespace radam {

struct Segment {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;       // null without amsgrad
  std::int64_t numel;         // real scalars; a complex element counts twice
  std::int64_t first;         // scalars before this one's, each segment padded to whole chunks
  std::int64_t coefficients;  // which coefficients of the launch apply
};

struct SegmentTypes {
  DType param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq;
};

template <typename T>
RADAM_INLINE Coefficients<T> round_to(const Coefficients<double>& c) {
  return {static_cast<T>(c.grad_mul),  static_cast<T>(c.l2),
          static_cast<T>(c.decay),     static_cast<T>(c.one_minus_beta1),
          static_cast<T>(c.beta2),     static_cast<T>(c.one_minus_beta2),
          static_cast<T>(c.step_size), static_cast<T>(c.eps)};
}

}  // namespace radam
