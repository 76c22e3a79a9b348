#include "engine.h"

namespace radam::cuda {

template <typename P>
void run_blocks(const SegmentTypes& types, bool amsgrad, const StepArguments& arguments,
                std::int64_t blocks, Fault fault) {
  for_types<P>(types, amsgrad, [&](auto grad, auto moment, auto with_amsgrad) {
    using G = typename decltype(grad)::type;
    using M = typename decltype(moment)::type;
    const auto run = step_thread<P, G, M, decltype(with_amsgrad)::value>;
    const int threads = fault == Fault::one_thread_less ? kThreads - 1 : kThreads;
    for (std::int64_t block = blocks; block-- > 0;) {
      if (fault == Fault::last_block_left_out && block == blocks - 1) continue;
      for (int thread = threads; thread-- > 0;) run(arguments, block, thread);
      if (fault == Fault::a_thread_twice) run(arguments, block, 0);
    }
  });
}

template void run_blocks<RADAM_PARAM>(const SegmentTypes&, bool, const StepArguments&, std::int64_t,
                                      Fault);

}  // namespace radam::cuda
