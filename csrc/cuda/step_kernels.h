// The step kernels of parameters that are stored as P. step_kernels.cu defines them and is compiled
// once per P.
#pragma once

#include <type_traits>

#include "grid.h"

namespace radam::cuda {

using StepKernel = void (*)(StepArguments);

template <typename P>
StepKernel step_kernel_for(const SegmentTypes& types, bool tracked);

namespace detail {

template <typename E>
struct Type {
  using type = E;
};

}  // namespace detail

// Chooses a kernel by the stored types of gradient and moments, by AMSGrad, by whether values are
// rounded stochastically, and by whether it sums the squares of its differences.
// Kernel<P, G, M, amsgrad, draws, tracked>::get() returns it. Null: no options ask for it.
template <typename P, template <typename, typename, typename, bool, bool, bool> typename Kernel>
StepKernel choose_step_kernel(const SegmentTypes& types, bool tracked) {
  using T = Arithmetic<P>;
  using Narrow = typename Stored<role::param, P>::Element;
  const auto with_flags = [&](auto grad, auto moment, auto draws) {
    using G = typename decltype(grad)::type;
    using M = typename decltype(moment)::type;
    constexpr bool drawn = decltype(draws)::value;
    if (types.has[role::max_exp_avg_sq]) {
      return tracked ? Kernel<P, G, M, true, drawn, true>::get()
                     : Kernel<P, G, M, true, drawn, false>::get();
    }
    return tracked ? Kernel<P, G, M, false, drawn, true>::get()
                   : Kernel<P, G, M, false, drawn, false>::get();
  };
  const auto with_moment = [&](auto grad, auto moment) -> StepKernel {
    using M = typename decltype(moment)::type;
    constexpr bool is_narrow = std::is_same_v<M, BFloat16>;
    if constexpr (is_narrow || std::is_same_v<P, BFloat16>) {
      if (types.draws_any()) return with_flags(grad, moment, std::true_type{});
    }
    if constexpr (is_narrow && !std::is_same_v<Narrow, BFloat16>) {
      return nullptr;  // to nearest, moments are only stored in the parameter's type
    } else {
      return with_flags(grad, moment, std::false_type{});
    }
  };
  const auto with_grad = [&](auto grad) {
    if constexpr (std::is_same_v<T, float>) {
      if (types.of[role::exp_avg] == DType::bfloat16) {
        return with_moment(grad, detail::Type<BFloat16>{});
      }
    }
    if constexpr (std::is_same_v<Narrow, Half>) {
      if (types.of[role::exp_avg] == DType::float16) {
        return with_moment(grad, detail::Type<Half>{});
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
