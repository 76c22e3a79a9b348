// The step kernels of parameters that are stored as P. step_kernels.cu defines them and is compiled
// once per P.
#pragma once

#include <type_traits>

#include "grid.h"

namespace radam::cuda {

using StepKernel = void (*)(StepArguments);

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool amsgrad, bool tracked);

namespace detail {

template <typename E>
struct Type {
  using type = E;
};

}  // namespace detail

// Chooses a kernel by the stored types of gradient and moments, by amsgrad, and by whether it sums
// the squares of its differences. Kernel<P, G, M, amsgrad, tracked>::get() returns it.
template <typename P, template <typename, typename, typename, bool, bool> typename Kernel>
StepKernel choose_step_kernel(const SegmentTypes& types, bool amsgrad, bool tracked) {
  using T = Arithmetic<P>;
  using Narrow = typename Stored<role::param, P>::Element;
  const auto with_moment = [&](auto grad, auto moment) {
    using G = typename decltype(grad)::type;
    using M = typename decltype(moment)::type;
    if (tracked) {
      return amsgrad ? Kernel<P, G, M, true, true>::get() : Kernel<P, G, M, false, true>::get();
    }
    return amsgrad ? Kernel<P, G, M, true, false>::get() : Kernel<P, G, M, false, false>::get();
  };
  const auto with_grad = [&](auto grad) {
    if constexpr (!std::is_same_v<Narrow, T>) {
      if (types.of[role::exp_avg] == types.of[role::param]) {
        return with_moment(grad, detail::Type<Narrow>{});
      }
    }
    return with_moment(grad, detail::Type<T>{});
  };
  switch (types.of[role::grad]) {
    case DType::float64:
      return with_grad(detail::Type<double>{});
    case DType::bfloat16:
      return with_grad(detail::Type<BFloat16>{});
    case DType::float16:
      return with_grad(detail::Type<Half>{});
    default:
      return with_grad(detail::Type<float>{});
  }
}

}  // namespace radam::cuda
