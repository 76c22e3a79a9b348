// The step's kernels for parameters that are stored as P: step.cu defines them and is compiled once
// for each P.
#pragma once

#include <type_traits>

#include "grid.h"

namespace radam::cuda {

using StepKernel = void (*)(StepArguments);

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool amsgrad);

// Calls `call` with the types of a launch whose parameters are stored as P: gradient and moment,
// each in a Type, and whether there is amsgrad.
template <typename E>
struct Type {
  using type = E;
};

template <typename P, typename Call>
StepKernel for_types(const SegmentTypes& types, bool amsgrad, const Call& call) {
  using T = Arithmetic<P>;
  using Narrow = typename Stored<role::param, P>::Element;
  const auto with_moment = [&](auto grad, auto moment) {
    return amsgrad ? call(grad, moment, std::true_type{}) : call(grad, moment, std::false_type{});
  };
  const auto with_grad = [&](auto grad) {
    if constexpr (!std::is_same_v<Narrow, T>) {
      if (types.of[role::exp_avg] == types.of[role::param]) {
        return with_moment(grad, Type<Narrow>{});
      }
    }
    return with_moment(grad, Type<T>{});
  };
  switch (types.of[role::grad]) {
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

}  // namespace radam::cuda
