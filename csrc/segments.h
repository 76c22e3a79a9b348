// The table of memory ranges that one launch updates: a row for each parameter, or for several that
// lie side by side.
#pragma once

#include <cstdint>
#include <vector>

#include "radam_math.h"
#include "scalar.h"

namespace radam {

// A parameter, its gradient and its state.
namespace role {
enum : int {
#define RADAM_ROLE(name, kind) name,
#include "roles.def"
#undef RADAM_ROLE
  count
};
}  // namespace role
constexpr int kRoles = role::count;

constexpr const char* kRoleNames[kRoles] = {
#define RADAM_ROLE(name, kind) #name,
#include "roles.def"
#undef RADAM_ROLE
};

// A counter is one number. Everything else has the parameter's shape, device and memory order; the
// moments of a launch also have one dtype.
enum class RoleKind { arithmetic, counter, moment };

constexpr RoleKind kRoleKinds[kRoles] = {
#define RADAM_ROLE(name, kind) RoleKind::kind,
#include "roles.def"
#undef RADAM_ROLE
};

struct Segment {
  void* at[kRoles];           // null for a role that the launch does not have
  std::int64_t numel;         // real scalars; a complex element counts twice
  std::int64_t first;         // scalars before this one's, each segment padded to whole chunks
  std::int64_t coefficients;  // which coefficients of the launch apply
  std::int64_t options;       // which options the device computes them from, if it counts the steps
};

struct SegmentTypes {
  DType of[kRoles];
};

// What the coefficients of a step that is counted on the device are computed from.
struct DeviceOptions {
  StepOptions values;
  const void* lr;  // in device memory; null: that of the values
  std::int64_t lr_is_float64;
  const float* grad_scale;  // null: 1
  const float* found_inf;   // null: no gradient overflowed
};

// What one launch does, read and computed: nothing in it refers to Python.
struct Work {
  std::vector<Segment> segments;  // of the parameters that have a gradient
  SegmentTypes types;
  bool amsgrad;
  bool counts_on_device;
  std::vector<StepCoefficients> coefficients;  // if the host counts the steps
  std::vector<DeviceOptions> options;          // if the device does
};

template <typename T>
RADAM_INLINE Coefficients<T> round_to(const Coefficients<double>& c) {
  return {static_cast<T>(c.grad_mul),  static_cast<T>(c.l2),
          static_cast<T>(c.decay),     static_cast<T>(c.one_minus_beta1),
          static_cast<T>(c.beta2),     static_cast<T>(c.one_minus_beta2),
          static_cast<T>(c.step_size), static_cast<T>(c.eps)};
}

}  // namespace radam
