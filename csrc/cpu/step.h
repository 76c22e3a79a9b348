// The CPU backend: a loop that is compiled once per instruction set, and the choice between them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../segments.h"
#include "../sums.h"

namespace radam::cpu {

// A Work without std::vector, whose functions a build for one instruction set must not define.
struct Tables {
  const Segment* segments;
  std::int64_t num_segments;
  const void* coefficients;  // array of StepCoefficients of the arithmetic type
  SegmentTypes types;
  const Draw* draws;  // of the segments, if values are rounded stochastically
  bool prefetch;      // whether the loop issues prefetches
  // Of step_chunks: the first chunk of each segment, then the number of chunks; and for each chunk
  // the sum of the squares of the differences that the step makes to the stored parameters.
  const std::int64_t* first_chunks;
  double* sums;
};

// The work of one thread: elements [begin, end) of the concatenated segments.
using StepRange = void (*)(const Tables& tables, std::int64_t begin, std::int64_t end);

// The chunks of gradients whose squares are summed.
struct SumTables {
  const Segment* segments;
  std::int64_t num_segments;
  const std::int64_t* first_chunks;  // of each segment, then their number
  DType grad;
  double* sums;  // one for each chunk
};

// The work of one thread: chunks [begin, end).
using SumRange = void (*)(const SumTables& tables, std::int64_t begin, std::int64_t end);

// Four arrays of one length: three are read and written, the gradient is read.
struct Arrays {
  float* param;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
};

// The bandwidth limit of one thread: elements [begin, end) of the arrays.
using MoveRange = void (*)(const Arrays& arrays, std::int64_t begin, std::int64_t end);

namespace baseline {
void step_range(const Tables&, std::int64_t, std::int64_t);
void step_chunks(const Tables&, std::int64_t, std::int64_t);
void sum_range(const SumTables&, std::int64_t, std::int64_t);
void move_range(const Arrays&, std::int64_t, std::int64_t);
}  // namespace baseline
namespace avx2 {
void step_range(const Tables&, std::int64_t, std::int64_t);
void step_chunks(const Tables&, std::int64_t, std::int64_t);
void sum_range(const SumTables&, std::int64_t, std::int64_t);
void move_range(const Arrays&, std::int64_t, std::int64_t);
}  // namespace avx2
namespace avx512 {
void step_range(const Tables&, std::int64_t, std::int64_t);
void step_chunks(const Tables&, std::int64_t, std::int64_t);
void sum_range(const SumTables&, std::int64_t, std::int64_t);
void move_range(const Arrays&, std::int64_t, std::int64_t);
}  // namespace avx512

// The instruction sets of this build that this machine can run, best first.
std::vector<std::string> instruction_sets();

// Updates every segment with up to `threads` OpenMP threads; any number gives the same bits.
// prefetch: whether the loop issues prefetches; the default depends on the processor. sums: null,
// or receives for each segment the sum of the squares of the differences to its parameters.
void step(const Work& work, int threads, const std::string& instruction_set,
          std::optional<bool> prefetch, SumMemory& memory, double* sums);

// The sum of the squares of each segment's gradient.
void sum_squares(const Work& work, int threads, const std::string& instruction_set,
                 SumMemory& memory, double* sums);

// Moves the bytes of a float32 step and computes nothing, with the threads of a step.
void move(const Arrays& arrays, std::int64_t numel, int threads,
          const std::string& instruction_set);

}  // namespace radam::cpu
