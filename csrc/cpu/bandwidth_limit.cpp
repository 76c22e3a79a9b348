// The bandwidth limit: a loop that only reads four arrays and writes three of them back, as a step
// does. It is built once per instruction set, like the step.
#include "step.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {

void move_range(const Arrays& arrays, std::int64_t begin, std::int64_t end) {
  const auto [param, grad, exp_avg, exp_avg_sq] = arrays;
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    const float sum = param[i] + grad[i] + exp_avg[i] + exp_avg_sq[i];
    param[i] = sum;
    exp_avg[i] = sum;
    exp_avg_sq[i] = sum;
  }
}

}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
