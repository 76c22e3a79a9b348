// The options of all parameter groups as numbers, and the coefficients computed from them.
#pragma once

#include <string>
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

  // Reads the options of optimizer.param_groups. Returns the groups whose options must be checked:
  // an option other than the learning rate, or the set of keys, has changed since the last call, or
  // the learning rate is out of range. Throws if a value is not a number.
  std::vector<std::size_t> read(const py::list& groups);

  std::size_t size() const { return groups_.size(); }

  // The first group with the same options.
  std::size_t first_like(std::size_t group) const { return groups_[group].first_like; }

  // The coefficients of a step that the host counts. Valid until the next call.
  const StepCoefficients<double>& coefficients(std::size_t group, double step, double grad_scale,
                                               double clip_coefficient);

  // The seed of stochastic rounding.
  std::uint64_t seed(std::size_t group) const;

  // The options for a device that counts the steps, without the addresses of the inputs that all
  // groups share.
  // capturing: whether a graph is being captured; its replays would not see a change on the host.
  DeviceOptions for_device(std::size_t group, const dlpack::Device& device, bool capturing);

  // Releases the learning rates that are tensors.
  void release();

 private:
  static constexpr std::size_t kNoOption = static_cast<std::size_t>(-1);

  // An item of a parameter group.
  struct Entry {
    py::object key;
    py::object value;    // that of the last call, if it is a constant
    std::size_t option;  // the first number that it gives; kNoOption: none
  };
  struct Group {
    std::vector<Entry> entries;   // in the order of the group
    std::vector<double> numbers;  // in the order of names_
    StepOptions options{};        // the first of them; lr is NaN if the host must wait for it
    PyObject* lr = nullptr;       // the tensor, or null
    bool waits_for_lr = false;
    bool differs = false;  // from the last call
    bool is_reported = false;
    std::size_t first_like = 0;
    double step = -1;  // step count of `kept`; -1: none
    double grad_scale = 0, clip_coefficient = 0;
    StepCoefficients<double> kept{};
  };
  struct Terms {
    double beta1, beta2, rectify, rectify_threshold, exact_rectification;
    double step;
    StepTerms terms;
  };
  void find_options(Group& group, const py::dict& given, std::size_t index);
  void read_group(std::size_t index, const py::dict& given);
  void read_option(Group& group, std::size_t index, std::size_t option, PyObject* value);
  void read_lr(Group& group, std::size_t index, PyObject* lr);
  static void set(Group& group, std::size_t option, double number);
  void find_alike();
  static double host_lr(const Group& group);
  const StepTerms& terms_of(const StepOptions& options, double step);

  std::size_t seed_;                // index of the seed among the numbers
  std::vector<std::string> names_;  // of the numbers: those of options.def, then the watched ones
  std::vector<double> fallbacks_;   // their defaults; NaN: a group must have the option
  py::dict index_of_;               // maps a key of a group to the first number that it gives
  std::vector<Group> groups_;
  std::vector<std::pair<std::size_t, py::object>> lr_tensors_;  // (group, lr), for one step
  std::vector<Terms> terms_;
  std::size_t oldest_terms_ = 0;
};

}  // namespace radam
