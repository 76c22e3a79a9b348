// The sums of squares of gradients, one for each chunk (see ../sums.h). It is built once per
// instruction set, like the step.
#include "fold.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Distance of a prefetch in chunks. Without prefetches, the memory is read 30 % slower.
constexpr std::int64_t kAhead = 2;

template <typename Stored>
void sum_chunks_of(const SumTables& tables, std::int64_t begin, std::int64_t end) {
  const auto* const firsts = tables.first_chunks;
  std::int64_t segment = segment_of(firsts, tables.num_segments, begin);
  for (std::int64_t chunk = begin; chunk < end; ++chunk) {
    while (firsts[segment + 1] <= chunk) ++segment;
    const Segment& s = tables.segments[segment];
    const std::int64_t offset = (chunk - firsts[segment]) * kSumChunk;
    const Stored* const x = static_cast<const Stored*>(s.at[role::grad]) + offset;
    constexpr std::int64_t bytes = kSumChunk * sizeof(Stored);
    for (std::int64_t line = 0; line < bytes; line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(x) + line + kAhead * bytes);
    }
    const std::int64_t numel = s.numel - offset < kSumChunk ? s.numel - offset : kSumChunk;
    tables.sums[chunk] = fold_squares(numel, [x](std::int64_t i) { return load(x[i]); });
  }
}

}  // namespace

void sum_range(const SumTables& tables, std::int64_t begin, std::int64_t end) {
  switch (tables.grad) {
    case DType::float64:
      return sum_chunks_of<double>(tables, begin, end);
    case DType::float32:
      return sum_chunks_of<float>(tables, begin, end);
    case DType::bfloat16:
      return sum_chunks_of<BFloat16>(tables, begin, end);
    case DType::float16:
      return sum_chunks_of<Half>(tables, begin, end);
  }
}

}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
