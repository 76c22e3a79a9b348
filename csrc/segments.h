// The table of memory ranges that one launch updates. A segment is one parameter, or several
// neighbours in memory. An element is a real number: a complex number counts as two.
#pragma once

#include <cstdint>
#include <vector>

#include "radam_math.h"
#include "random.h"
#include "scalar.h"

namespace radam {

// The tensors of a parameter.
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

// A counter is one number. All other tensors have the shape, device and memory order of the
// parameter; the moments of a launch have the same dtype. A master holds what a 16-bit parameter
// leaves out: the other 16 bits, or all 32.
enum class RoleKind { arithmetic, counter, moment, master };

constexpr RoleKind kRoleKinds[kRoles] = {
#define RADAM_ROLE(name, kind) RoleKind::kind,
#include "roles.def"
#undef RADAM_ROLE
};

// The alignment lets a kernel read a segment in 16-byte words.
struct alignas(16) Segment {
  void* at[kRoles];  // null for a role that the launch does not have
  std::int64_t numel;
  std::int64_t first;               // elements of earlier segments, each padded to whole chunks
  std::int64_t coefficients_index;  // in the coefficients of the launch
  std::int64_t options_index;       // in its DeviceOptions, if the device counts the steps
};

struct SegmentTypes {
  DType of[kRoles];
  bool has[kRoles];    // whether the launch has the role
  bool draws[kRoles];  // whether its values are rounded stochastically
  bool arithmetic_is_float64() const { return of[role::param] == DType::float64; }
  bool draws_any() const { return draws[role::param] || draws[role::exp_avg_sq]; }
};

// The inputs of the coefficients that a device computes, if it counts the steps.
struct DeviceOptions {
  StepOptions values;
  const void* lr;  // in device memory; null: values.lr
  std::int64_t lr_is_float64;
  const float* grad_scale;  // null: 1
  const float* found_inf;   // null: no gradient overflowed
  const Clip* clip;         // null: no norm was taken
};

// The input of one launch, without references to Python.
struct Work {
  std::vector<Segment> segments;  // of parameters with a gradient
  std::vector<Draw> draws;        // of the segments, if values are rounded stochastically
  SegmentTypes types;
  bool counts_on_device;
  // If the host counts the steps: an array of StepCoefficients of the arithmetic type; of float64
  // if a device clips them.
  std::vector<unsigned char> coefficients;
  const Clip* clip;                    // in device memory; null: nothing is left to clip
  std::vector<DeviceOptions> options;  // if the device counts them
};

}  // namespace radam
