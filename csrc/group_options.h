// The options of all parameter groups as numbers, and the coefficients computed from them.
#pragma once

#include <cmath>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <pybind11/pybind11.h>

#include "dlpack.h"
#include "segments.h"

namespace radam {

namespace py = pybind11;

class GroupOptions {
 public:
  // defaults: the values of options that a group may leave out. watched: names of options that do
  // not affect the coefficients, but whose changes read() reports as well.
  GroupOptions(const py::dict& defaults, const std::vector<std::string>& watched);

  // Reads the options of optimizer.param_groups. Returns the groups in which an option other than
  // the learning rate has changed since the last call. Throws if a value is not a number.
  std::vector<std::size_t> read(const py::list& groups);

  std::size_t size() const { return groups_.size(); }

  // The first group with the same options.
  std::size_t first_like(std::size_t group) const { return groups_[group].first_like; }

  // The coefficients of a step that the host counts. Valid until the next call.
  const StepCoefficients& coefficients(std::size_t group, double step, double grad_scale);

  // The options for a device that counts the steps, without the addresses of a gradient scaler.
  // capturing: whether a graph is being captured; its replays would not see a change on the host.
  DeviceOptions for_device(std::size_t group, const dlpack::Device& device, bool capturing);

  // Releases the learning rates that are tensors.
  void release();

 private:
  // The options of a group, compared byte by byte.
  struct Values {
    StepOptions options;
    PyObject* lr;  // the tensor, or null; options.lr is NaN if the tensor is on a device
  };
  struct Group {
    Values values{};
    std::size_t first_like = 0;
    double step = -1;  // step count of `kept`; -1: none
    double grad_scale = 0;
    StepCoefficients kept{};

    bool waits_for_lr() const { return values.lr != nullptr && std::isnan(values.options.lr); }
  };
  struct Terms {
    double beta1, beta2, rectify, rectify_threshold, exact_rectification;
    double step;
    StepTerms terms;
  };
  struct Option {
    py::object key;   // in the group
    Py_ssize_t item;  // within a sequence; -1: the value itself
    std::string name;
    double fallback;  // NaN: the group must have the option
    bool may_be_none;
  };

  double number(const Option& option, PyObject* group) const;
  double learning_rate(std::size_t group, PyObject* lr);
  double host_lr(Group& group);
  const StepTerms& terms_of(const StepOptions& options, double step);

  std::vector<Option> options_;  // those of options.def, then the watched ones
  std::vector<Group> groups_;
  std::vector<double> watched_;  // values of the watched options, group by group
  std::vector<std::pair<std::size_t, py::object>> lr_tensors_;  // (group, lr), for one step
  std::vector<Terms> terms_;
  std::size_t oldest_terms_ = 0;
  std::unordered_map<std::string, std::size_t> first_of_;  // maps the bytes of Values to a group
};

}  // namespace radam
