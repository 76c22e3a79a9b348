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
  // defaults: for each option that a group may leave out, what it then has; watched: names of
  // options that are no numbers of a step, but whose change read() is to report as well.
  GroupOptions(const py::dict& defaults, const std::vector<std::string>& watched);

  // Reads every option of optimizer.param_groups. Returns the groups in which one besides the
  // learning rate has changed since the last call. Throws where a value is not a number.
  std::vector<std::size_t> read(const py::list& groups);

  std::size_t size() const { return groups_.size(); }

  // The first group whose options are the same.
  std::size_t first_like(std::size_t group) const { return groups_[group].first_like; }

  // Of a step that the host counts; kept until the options or the step change.
  const StepCoefficients& coefficients(std::size_t group, std::int64_t step, double grad_scale);

  // For steps that a device counts; the addresses of the gradients' scale are left out. capturing:
  // whether a graph is being captured, whose replays would not see a number on the host change.
  DeviceOptions for_device(std::size_t group, const dlpack::Device& device, bool capturing);

  // Lets go of the learning rates that are tensors.
  void release();

 private:
  // What tells two groups' options apart, byte by byte.
  struct Values {
    StepOptions options;
    PyObject* lr;  // if it is a tensor, else null; its number is NaN unless the host has it
  };
  struct Group {
    Values values{};
    std::size_t first_like = 0;
    std::int64_t step = -1;  // of the coefficients that are kept; -1: none
    double grad_scale = 0;
    StepCoefficients kept{};

    bool waits_for_lr() const { return values.lr != nullptr && std::isnan(values.options.lr); }
  };
  struct Terms {
    double beta1, beta2, rectify, rectify_threshold, exact_rectification;
    std::int64_t step;
    StepTerms terms;
  };
  struct Option {
    py::object key;   // in the group
    Py_ssize_t item;  // within a sequence; -1: the value itself
    std::string name;
    double fallback;  // NaN: the group has to have it
  };

  double number(const Option& option, PyObject* group) const;
  double learning_rate(std::size_t group, PyObject* lr);
  double host_lr(Group& group);
  const StepTerms& terms_of(const StepOptions& options, std::int64_t step);

  std::vector<Option> options_;  // options.def's, then the watched ones
  std::vector<Group> groups_;
  std::vector<double> watched_;                                 // their values, group after group
  std::vector<std::pair<std::size_t, py::object>> lr_tensors_;  // by group, for one step
  std::vector<Terms> terms_;
  std::size_t oldest_terms_ = 0;
  std::unordered_map<std::string, std::size_t> first_of_;  // group by the bytes of its values
};

}  // namespace radam
