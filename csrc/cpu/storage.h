// How the loops read and write the arrays of a segment: as they are, or converted in tiles. It is
// compiled once per instruction set.
#pragma once

#include "step.h"

namespace radam::cpu::RADAM_INSTRUCTION_SET {
namespace {

// Elements that are converted at a time: five float64 arrays of this length fit into the L1 cache.
constexpr std::int64_t kTile = 256;

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

template <typename T>
constexpr DType native_dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;

template <typename Stored, typename T>
void convert_in(T* to, const void* from, std::int64_t offset, std::int64_t numel) {
  const Stored* source = static_cast<const Stored*>(from) + offset;
#pragma omp simd
  for (std::int64_t i = 0; i < numel; ++i) to[i] = static_cast<T>(load(source[i]));
}

// An array of any stored type, in the arithmetic type.
template <typename T>
void convert_in(T* to, const void* from, DType stored, std::int64_t offset, std::int64_t numel) {
  switch (stored) {
    case DType::float64:
      return convert_in<double>(to, from, offset, numel);
    case DType::float32:
      return convert_in<float>(to, from, offset, numel);
    case DType::bfloat16:
      return convert_in<BFloat16>(to, from, offset, numel);
    case DType::float16:
      return convert_in<Half>(to, from, offset, numel);
    case DType::int16:
      break;  // no array of values
  }
}

template <typename Stored, typename T>
void convert_out(void* to, const T* from, std::int64_t offset, std::int64_t numel) {
  Stored* target = static_cast<Stored*>(to) + offset;
#pragma omp simd
  for (std::int64_t i = 0; i < numel; ++i) store(target[i], static_cast<float>(from[i]));
}

// The random bits of elements, which begin at `offset` in their segment.
inline void draw_bits(std::uint32_t* to, const Draw& draw, std::int64_t offset,
                      std::int64_t numel) {
  for (std::int64_t at = 0; at < numel;) {
    const std::int64_t element = offset + at;
    const std::uint64_t place = place_of(draw, element);
    const std::uint64_t key = place_key(draw.step_key, place);
    const auto low = static_cast<std::uint32_t>(place);
    // Up to the end of the run, and while the upper 32 bits of the place are the same.
    const std::int64_t in_run = smaller(numel - at, draw.run - element % draw.run);
    const std::int64_t count = smaller(in_run, (std::int64_t{1} << 32) - low);
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      to[at + i] = random_bits(key, low + static_cast<std::uint32_t>(i));
    }
    at += count;
  }
}

// The arrays of a segment in the arithmetic type, starting at an offset.
template <typename T>
struct Arrays {
  T* param;
  const T* grad;
  T *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
  T* differences = nullptr;  // receives what an update adds to the parameters, if it is tracked
};

// Reads the arrays of a segment as the arithmetic type, and writes them back.
template <typename T>
class Storage {
 public:
  Storage(const Tables& tables, const Segment& segment)
      : types_(tables.types),
        segment_(segment),
        draw_(types_.draws_any() ? &tables.draws[&segment - tables.segments] : nullptr) {}

  // Whether every array is stored in the arithmetic type.
  bool is_native() const {
    for (int r = 0; r < kRoles; ++r) {
      if (is_updated(r) && types_.of[r] != native_dtype<T>) return false;
    }
    return true;
  }

  Arrays<T> load(std::int64_t offset, std::int64_t numel) {
    T* at[kRoles] = {};
    for (int r = 0; r < kRoles; ++r) {
      if (!is_updated(r) || kRoleKinds[r] == RoleKind::master) continue;
      if (types_.of[r] == native_dtype<T>) {
        at[r] = static_cast<T*>(segment_.at[r]) + offset;
        continue;
      }
      at[r] = copies_[r];
      r == role::param ? read_param(at[r], offset, numel)
                       : convert_in(at[r], segment_.at[r], types_.of[r], offset, numel);
    }
    return {at[role::param], at[role::grad], at[role::exp_avg], at[role::exp_avg_sq],
            at[role::max_exp_avg_sq]};
  }

  void store(std::int64_t offset, std::int64_t numel) {
    if (draw_ != nullptr) draw_bits(bits_, *draw_, offset, numel);
    for (int r = 0; r < kRoles; ++r) {
      if (!is_updated(r) || r == role::grad || kRoleKinds[r] == RoleKind::master) continue;
      if (r == role::param && has_master()) {
        with_master([&](auto value, auto master, int beside) {
          write_values<decltype(value), decltype(master)>(beside, offset, numel);
        });
      } else if (types_.draws[r]) {
        round_stochastically(r, offset, numel);
      } else if (types_.of[r] == DType::bfloat16) {
        convert_out<BFloat16>(segment_.at[r], copies_[r], offset, numel);
      } else if (types_.of[r] == DType::float16) {
        convert_out<Half>(segment_.at[r], copies_[r], offset, numel);
      }
    }
  }

  // Any number of parameters, with their masters.
  void read_param(T* to, std::int64_t offset, std::int64_t numel) const {
    if (has_master()) {
      with_master([&](auto value, auto master, int beside) {
        read_values<decltype(value), decltype(master)>(to, beside, offset, numel);
      });
    } else {
      convert_in(to, segment_.at[role::param], types_.of[role::param], offset, numel);
    }
  }

 private:
  bool is_updated(int r) const {
    return kRoleKinds[r] != RoleKind::counter && segment_.at[r] != nullptr;
  }

  bool has_master() const {
    return types_.has[role::param_remainder] || types_.has[role::master_param];
  }

  // Calls run(E, B, role of the masters) for parameters that are stored as E with masters as B.
  template <typename Run>
  void with_master(const Run& run) const {
    if (types_.has[role::param_remainder]) {
      run(BFloat16{}, std::int16_t{}, role::param_remainder);
    } else if (types_.of[role::param] == DType::bfloat16) {
      run(BFloat16{}, float{}, role::master_param);
    } else {
      run(Half{}, float{}, role::master_param);
    }
  }

  template <typename E, typename B>
  void read_values(T* to, int beside, std::int64_t offset, std::int64_t numel) const {
    const auto* const values = static_cast<const E*>(segment_.at[role::param]) + offset;
    const auto* const masters = static_cast<const B*>(segment_.at[beside]) + offset;
#pragma omp simd
    for (std::int64_t i = 0; i < numel; ++i) {
      to[i] = static_cast<T>(radam::load(values[i], masters[i]));
    }
  }

  template <typename E, typename B>
  void write_values(int beside, std::int64_t offset, std::int64_t numel) const {
    auto* const values = static_cast<E*>(segment_.at[role::param]) + offset;
    auto* const masters = static_cast<B*>(segment_.at[beside]) + offset;
    const T* const from = copies_[role::param];
#pragma omp simd
    for (std::int64_t i = 0; i < numel; ++i) {
      radam::store(values[i], masters[i], static_cast<float>(from[i]));
    }
  }

  void round_stochastically(int r, std::int64_t offset, std::int64_t numel) const {
    auto* const to = static_cast<BFloat16*>(segment_.at[r]) + offset;
    const T* const from = copies_[r];
    if (r == role::param) {
#pragma omp simd
      for (std::int64_t i = 0; i < numel; ++i) {
        store_stochastically(to[i], static_cast<float>(from[i]), bits_of_param(bits_[i]));
      }
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < numel; ++i) {
        store_stochastically(to[i], static_cast<float>(from[i]), bits_of_exp_avg_sq(bits_[i]));
      }
    }
  }

  const SegmentTypes& types_;
  const Segment& segment_;
  const Draw* draw_;
  alignas(64) T copies_[kRoles][kTile];
  alignas(64) std::uint32_t bits_[kTile];
};

}  // namespace
}  // namespace radam::cpu::RADAM_INSTRUCTION_SET
