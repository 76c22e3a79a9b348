#include "group_options.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "torch_tensors.h"

namespace radam {
namespace {

constexpr double kNone = -1.0;      // stands for None
constexpr std::size_t kTerms = 64;  // cache: step counts of a model times sets of decay rates

py::object interned(const std::string& name) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name.c_str()));
}

[[noreturn]] void throw_no_number(const std::string& name, PyObject* value) {
  PyErr_Clear();
  throw py::type_error("Invalid " + name + " value: " + py::repr(value).cast<std::string>() +
                       ", expected a number");
}

double value_of(const py::handle& tensor) {
  return tensor.attr("item")().cast<double>();
}

}  // namespace

GroupOptions::GroupOptions(const py::dict& defaults, const std::vector<std::string>& watched) {
  std::vector<std::string> names(kOptionNames, kOptionNames + kOptions);
  names.insert(names.end(), watched.begin(), watched.end());
  for (const std::string& name : names) {
    const bool is_beta = name == "beta1" || name == "beta2";
    double fallback = std::numeric_limits<double>::quiet_NaN();
    if (defaults.contains(name)) {
      const py::object value = defaults[name.c_str()];
      fallback = value.is_none() ? kNone : value.cast<double>();
    }
    const bool is_watched = options_.size() >= static_cast<std::size_t>(kOptions);
    options_.push_back({interned(is_beta ? "betas" : name), is_beta ? name.back() - '1' : -1, name,
                        fallback, is_watched});
  }
}

double GroupOptions::number(const Option& option, PyObject* group) const {
  py::object given = item_of(group, option.key.ptr());
  if (!given) {
    if (std::isnan(option.fallback)) throw py::key_error(option.name);
    return option.fallback;
  }
  if (option.item >= 0) {
    PyObject* const item = PySequence_GetItem(given.ptr(), option.item);
    if (item == nullptr) throw_no_number("betas", given.ptr());
    given = py::reinterpret_steal<py::object>(item);
  }
  PyObject* const value = given.ptr();
  if (value == Py_None && option.may_be_none) return kNone;
  // float() would warn about a tensor that requires a gradient.
  if (!PyFloat_Check(value) && !PyLong_Check(value) && is_tensor(value)) {
    return value_of(given);
  }
  if (value == Py_True) return 1.0;
  if (value == Py_False) return 0.0;
  const double result = PyFloat_AsDouble(value);
  if (result == -1.0 && PyErr_Occurred()) throw_no_number(option.name, value);
  return result;
}

// The learning rate as a number; NaN if it is a tensor that the host cannot read without waiting.
double GroupOptions::learning_rate(std::size_t group, PyObject* lr) {
  if (PyFloat_Check(lr) || PyLong_Check(lr) || !is_tensor(lr)) {
    const double result = PyFloat_AsDouble(lr);
    if (result == -1.0 && PyErr_Occurred()) throw_no_number("lr", lr);
    return result;
  }
  const Range range = contiguous_range(lr, "lr");
  if (range.numel != 1) throw py::value_error("Tensor lr must be 1-element");
  lr_tensors_.emplace_back(group, py::reinterpret_borrow<py::object>(lr));
  if (range.device.type != dlpack::kCPU) return std::numeric_limits<double>::quiet_NaN();
  return value_of(lr_tensors_.back().second);
}

std::vector<std::size_t> GroupOptions::read(const py::list& groups) {
  release();
  const std::size_t count = groups.size(), watched = options_.size() - kOptions;
  const bool is_new = count != groups_.size();
  if (is_new) {
    groups_.assign(count, {});
    watched_.assign(count * watched, 0.0);
  }
  std::vector<std::size_t> changed;
  bool any_differs = is_new;
  for (std::size_t g = 0; g < count; ++g) {
    PyObject* const group = PyList_GET_ITEM(groups.ptr(), static_cast<Py_ssize_t>(g));
    Values now{};
    double numbers[kOptions];
    const py::object lr = item_of(group, options_[0].key.ptr());
    if (!lr) throw py::key_error("lr");
    numbers[0] = learning_rate(g, lr.ptr());
    for (int k = 1; k < kOptions; ++k) numbers[k] = number(options_[k], group);
    std::memcpy(&now.options, numbers, sizeof now.options);
    if (!lr_tensors_.empty() && lr_tensors_.back().first == g) now.lr = lr.ptr();
    bool reported = is_new;
    for (std::size_t k = 0; k < watched; ++k) {
      double& held = watched_[g * watched + k];
      const double value = number(options_[kOptions + k], group);
      reported |= value != held;
      held = value;
    }
    Group& held = groups_[g];
    // All options but the learning rate, which is the first.
    reported |= std::memcmp(&held.values.options.lr + 1, &now.options.lr + 1,
                            sizeof now.options - sizeof(double)) != 0;
    if (is_new || std::memcmp(&held.values, &now, sizeof now) != 0) {
      held.values = now;
      held.step = -1;
      any_differs = true;
    }
    if (reported) changed.push_back(g);
  }
  if (any_differs) {
    first_of_.clear();
    for (std::size_t g = 0; g < count; ++g) {
      const std::string bytes(reinterpret_cast<const char*>(&groups_[g].values), sizeof(Values));
      groups_[g].first_like = first_of_.try_emplace(bytes, g).first->second;
    }
  }
  return changed;
}

// Waits for the device if the learning rate is a tensor on it.
double GroupOptions::host_lr(Group& group) {
  if (!group.waits_for_lr()) return group.values.options.lr;
  return value_of(group.values.lr);
}

const StepTerms& GroupOptions::terms_of(const StepOptions& o, double step) {
  for (const Terms& t : terms_) {
    if (t.step == step && t.beta1 == o.beta1 && t.beta2 == o.beta2 && t.rectify == o.rectify &&
        t.rectify_threshold == o.rectify_threshold &&
        t.exact_rectification == o.exact_rectification) {
      return t.terms;
    }
  }
  if (terms_.size() < kTerms) terms_.resize(terms_.size() + 1);
  Terms& made = terms_[oldest_terms_];
  oldest_terms_ = (oldest_terms_ + 1) % kTerms;
  made = {o.beta1,
          o.beta2,
          o.rectify,
          o.rectify_threshold,
          o.exact_rectification,
          step,
          step_terms(step, o)};
  return made.terms;
}

const StepCoefficients& GroupOptions::coefficients(std::size_t index, double step,
                                                   double grad_scale) {
  Group& group = groups_[groups_[index].first_like];
  if (group.step != step || group.grad_scale != grad_scale || group.waits_for_lr()) {
    StepOptions options = group.values.options;
    options.lr = host_lr(group);
    group.kept = radam::coefficients(terms_of(options, step), options, grad_scale);
    group.step = step;
    group.grad_scale = grad_scale;
  }
  return group.kept;
}

DeviceOptions GroupOptions::for_device(std::size_t index, const dlpack::Device& device,
                                       bool capturing) {
  Group& group = groups_[index];
  DeviceOptions result{group.values.options, nullptr, 0, nullptr, nullptr};
  for (const auto& [of, lr] : lr_tensors_) {
    if (of != index) continue;
    const Range range = contiguous_range(lr, "lr");
    if (range.device.type == device.type && range.device.id == device.id) {
      if (range.dtype.code != dlpack::kFloat || range.dtype.bits < 32) {
        throw py::value_error("lr has dtype " + py::str(lr.attr("dtype")).cast<std::string>() +
                              ", expected torch.float32 or torch.float64");
      }
      result.lr = range.address;
      result.lr_is_float64 = range.dtype.bits == 64;
      result.values.lr = 0.0;
    } else if (capturing) {
      throw std::runtime_error("lr is a tensor on " +
                               py::str(lr.attr("device")).cast<std::string>() +
                               ", expected the parameters' device: replays of the graph that is "
                               "being captured would not "
                               "see a change");
    } else {
      result.values.lr = host_lr(group);
    }
  }
  return result;
}

void GroupOptions::release() {
  lr_tensors_.clear();
}

}  // namespace radam
