// From Python tensors to segments: the one place where addresses enter C++, after every check.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>

#include "dlpack.h"
#include "segments.h"

namespace radam {

namespace py = pybind11;

// A contiguous tensor's memory.
struct Range {
  void* address;
  dlpack::Device device;
  dlpack::DataType dtype;
  std::int64_t numel;
};

// Throws ValueError where `what`, as the error calls it, is no contiguous tensor.
Range contiguous_range(const py::handle& tensor, const std::string& what);

// Parameters with their optimizer state. Every refresh() reads each parameter, gradient and moment
// anew (type, device, dtype, shape, strides, address). The step counters are one tensor that the
// table keeps; of them it checks that the states still hold the views.
class TensorTable {
 public:
  // params: leaves, dense in memory. states: one dict a parameter (step, exp_avg, exp_avg_sq and,
  // with amsgrad, max_exp_avg_sq). steps: the counters, one contiguous tensor of which every
  // state's "step" is a view, on the CPU or, where counts_on_device, on the parameters' device.
  // flat: None, or the flat buffers that the parameters, the gradients (or None) and the moments
  // are views of; the moments' addresses are then not read anew. chunk: scalars to whose multiples
  // the launch pads its segments. Throws ValueError where a tensor does not fit its parameter.
  TensorTable(py::list params, py::list states, py::object steps, bool amsgrad, py::object flat,
              std::int64_t chunk, bool counts_on_device);

  // Reads every tensor, each parameter's .grad included. Returns the distinct step counts that the
  // parameters with a gradient are about to reach (none where the device counts), or nothing when
  // some tensor no longer is what the table was made for. alignment: bytes to whose multiples flat
  // buffers pad, over which neighbours become one segment; 0 where padding is to stay out.
  std::optional<std::vector<double>> refresh(std::int64_t alignment);

  // The rows of the parameters that take part in the step prepared by refresh().
  const std::vector<std::size_t>& active() const { return active_; }
  // Whether they are those of the refresh() before.
  bool active_is_unchanged() const { return active_ == previously_active_; }

  // Counts the step for the parameters that took part and lets go of their gradients.
  void finish();

  // For Python's garbage collector: the objects that the table keeps alive.
  int traverse(visitproc visit, void* arg) const;
  void clear();

  const std::vector<Segment>& segments() const { return segments_; }
  const SegmentTypes& types() const { return types_; }
  const dlpack::Device& device() const { return device_; }
  bool has_amsgrad() const { return roles_ == kRoles; }
  bool counts_on_device() const { return counts_on_device_; }
  std::size_t coefficients_needed() const { return due_.size(); }
  std::size_t size() const { return rows_.size(); }
  Range counters() const;

 private:
  enum Role { kParam, kGrad, kExpAvg, kExpAvgSq, kMaxExpAvgSq, kRoles };

  // One parameter. Compact, because a step reads every row with cold caches; `kept_` owns the
  // objects.
  struct Row {
    PyObject* tensors[kRoles];  // as the state holds them; the gradient changes from step to step
    PyObject* state;
    PyObject* step;            // the counter's view, as state["step"]
    PyTypeObject* param_type;  // any other type might keep its memory elsewhere
    std::int64_t numel;        // real scalars
    std::int64_t offset;       // of the first in the flat buffers, if there are any
    std::int32_t ndim;
    std::int32_t layout;        // where in layouts_ its shape and then its strides stand
    const void* hints[kRoles];  // where torch kept the tensors' sizes at the last step, to prefetch
    const void* state_hint;     // where Python kept the state's entries
  };

  bool view(const Row& row, Role role, dlpack::TensorView& out) const;
  bool matches(const dlpack::TensorView& view, const Row& row, Role role) const;
  bool state_is_current(const Row& row) const;
  std::int64_t coefficients_for(double step);
  int scalar_bytes(int role) const;
  std::int64_t padded(std::int64_t numel) const { return (numel + chunk_ - 1) / chunk_ * chunk_; }
  void place_in_flat_buffers();
  bool extends_last(const Row& row, const Segment& segment, std::int64_t alignment) const;

  std::vector<Row> rows_;
  std::vector<std::int64_t> layouts_;
  std::vector<py::object> kept_;
  py::object steps_;
  int roles_;  // kMaxExpAvgSq without amsgrad, else kRoles
  std::int64_t chunk_;
  bool counts_on_device_;
  bool steps_are_float64_ = false;
  bool is_flat_ = false;
  py::object flat_[kRoles];  // the flat buffers, and where they lay at the last refresh()
  char* flat_at_[kRoles]{};
  dlpack::Device device_{};
  dlpack::DataType dtypes_[kRoles]{};
  SegmentTypes types_{};
  std::vector<py::object> grads_;  // held while their memory is in use
  std::vector<Segment> segments_;  // of the parameters that take part
  std::vector<std::size_t> previously_active_;
  std::vector<std::size_t> active_;  // their rows
  std::vector<double> due_;          // distinct step counts
};

// Finds torch's exchange interface; called once, before anything else here. Throws where this torch
// has none.
void connect();

// Whether some parameter has a gradient.
bool any_gradient(const py::list& params);

// Whether a list, or the values of a dict, are these very objects in this order.
bool same_objects(const py::object& held, const py::list& expected);

}  // namespace radam
