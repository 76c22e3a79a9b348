#include "group_options.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <utility>

#include "torch_tensors.h"

namespace radam {
namespace option {
enum : std::size_t {
#define RADAM_OPTION(name) name,
#include "options.def"
#undef RADAM_OPTION
};
}  // namespace option

namespace {

constexpr double kNone = -1.0;      // stands for None
constexpr std::size_t kTerms = 64;  // cache: step counts of a model times sets of decay rates

bool is_plain(PyObject* value) {
  return PyFloat_CheckExact(value) || PyLong_CheckExact(value) || PyBool_Check(value) ||
         PyUnicode_CheckExact(value) || value == Py_None;
}

// Whether a value cannot change as long as it is the same object.
bool is_constant(PyObject* value) {
  if (!PyTuple_CheckExact(value)) return is_plain(value);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i) {
    if (!is_plain(PyTuple_GET_ITEM(value, i))) return false;
  }
  return true;
}

double value_of(const py::handle& tensor) {
  return tensor.attr("item")().cast<double>();
}

double number(PyObject* value) {
  if (value == Py_None) return kNone;
  // float() would warn about a tensor that requires a gradient.
  if (!PyFloat_Check(value) && !PyLong_Check(value) && is_tensor(value)) return value_of(value);
  const double result = PyFloat_AsDouble(value);
  if (result == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return result;
}

py::dict as_dict(const py::handle& group) {
  if (PyDict_Check(group.ptr())) return py::reinterpret_borrow<py::dict>(group);
  py::dict result;
  if (PyDict_Update(result.ptr(), group.ptr()) != 0) throw py::error_already_set();
  return result;
}

}  // namespace

GroupOptions::GroupOptions(const py::dict& defaults, const std::vector<std::string>& watched)
    : names_(kOptionNames, kOptionNames + kOptions) {
  names_.insert(names_.end(), watched.begin(), watched.end());
  seed_ =
      static_cast<std::size_t>(std::find(names_.begin(), names_.end(), "seed") - names_.begin());
  for (std::size_t i = 0; i < names_.size(); ++i) {
    const std::string& name = names_[i];
    if (i == option::beta1) {
      index_of_["betas"] = i;
    } else if (i != option::beta2) {
      index_of_[py::str(name)] = i;
    }
    const bool is_optional = defaults.contains(name);
    fallbacks_.push_back(is_optional ? number(defaults[name.c_str()].ptr())
                                     : std::numeric_limits<double>::quiet_NaN());
  }
}

// Finds the options among the keys of a group. Those that it leaves out get their default.
void GroupOptions::find_options(Group& group, const py::dict& given, std::size_t index) {
  group.entries.clear();
  group.numbers = fallbacks_;
  std::vector<bool> is_given(names_.size(), false);
  for (const auto& [key, value] : given) {
    Entry entry{py::reinterpret_borrow<py::object>(key), {}, kNoOption};
    if (index_of_.contains(key)) {
      entry.option = index_of_[key].cast<std::size_t>();
      is_given[entry.option] = true;
    }
    group.entries.push_back(std::move(entry));
  }
  is_given[option::beta2] = is_given[option::beta1];
  for (std::size_t i = 0; i < names_.size(); ++i) {
    if (is_given[i] || !std::isnan(fallbacks_[i])) continue;
    throw py::key_error("parameter group " + std::to_string(index) + " has no '" +
                        (i == option::beta1 ? "betas" : names_[i]) + "'");
  }
}

void GroupOptions::set(Group& group, std::size_t option, double number) {
  if (std::memcmp(&group.numbers[option], &number, sizeof number) == 0) return;
  group.numbers[option] = number;
  group.differs = true;
  group.is_reported |= option != option::lr;
}

void GroupOptions::read_option(Group& group, std::size_t index, std::size_t option,
                               PyObject* value) {
  if (option == option::lr) {
    read_lr(group, index, value);
  } else if (option >= kOptions && PyUnicode_Check(value)) {
    set(group, option, static_cast<double>(PyObject_Hash(value)));  // only a change matters
  } else if (option != option::beta1) {
    set(group, option, number(value));
  } else {
    for (const std::size_t i : {0, 1}) {
      const auto item =
          py::reinterpret_steal<py::object>(PySequence_GetItem(value, static_cast<Py_ssize_t>(i)));
      if (!item) throw py::error_already_set();
      set(group, option + i, number(item.ptr()));
    }
  }
}

// The number is NaN if the learning rate is a tensor that the host cannot read without waiting.
void GroupOptions::read_lr(Group& group, std::size_t index, PyObject* lr) {
  PyObject* tensor = nullptr;
  double value = 0;
  bool is_on_device = false;
  if (PyFloat_Check(lr) || PyLong_Check(lr) || !is_tensor(lr)) {
    value = number(lr);
  } else {
    tensor = lr;
    const Range range = contiguous_range(lr, "lr");
    if (range.numel != 1) throw py::value_error("Tensor lr must be 1-element");
    is_on_device = range.device.type != dlpack::kCPU;
    value = is_on_device ? std::numeric_limits<double>::quiet_NaN() : value_of(lr);
    lr_tensors_.emplace_back(index, py::reinterpret_borrow<py::object>(lr));
  }
  set(group, option::lr, value);
  group.differs |= tensor != group.lr;
  group.lr = tensor;
  group.waits_for_lr = is_on_device;
  // Schedulers change the learning rate at every step: only one out of range is reported.
  group.is_reported |= !is_on_device && !(value >= 0 && std::isfinite(value));
}

// Reads the values that are other objects than at the last step.
void GroupOptions::read_group(std::size_t index, const py::dict& given) {
  Group& group = groups_[index];
  const auto read = [&] {
    if (given.size() != group.entries.size()) return false;
    auto entry = group.entries.begin();
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (entry != group.entries.end() && PyDict_Next(given.ptr(), &position, &key, &value)) {
      if (entry->key.ptr() != key) return false;
      if (entry->option != kNoOption && entry->value.ptr() != value) {
        const auto held = py::reinterpret_borrow<py::object>(value);
        read_option(group, index, entry->option, value);
        // A tensor or a list can change, and must not be kept alive.
        entry->value = is_constant(value) ? held : py::object();
      }
      ++entry;
    }
    return true;
  };
  group.differs = group.is_reported = false;
  if (read()) return;
  find_options(group, given, index);
  read();
  group.differs = group.is_reported = true;
}

std::vector<std::size_t> GroupOptions::read(const py::list& groups) {
  release();
  bool any_differs = groups.size() != groups_.size();
  if (any_differs) {
    groups_.clear();
    groups_.resize(groups.size());
  }
  std::vector<std::size_t> reported;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    read_group(g, as_dict(PyList_GET_ITEM(groups.ptr(), static_cast<Py_ssize_t>(g))));
    Group& group = groups_[g];
    if (group.differs) {
      std::memcpy(&group.options, group.numbers.data(), sizeof group.options);
      group.step = -1;
      any_differs = true;
    }
    if (group.is_reported) reported.push_back(g);
  }
  if (any_differs) find_alike();
  return reported;
}

// Finds for each group the first one with the same options.
void GroupOptions::find_alike() {
  std::unordered_map<std::string, std::size_t> first_of;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    std::string bytes(reinterpret_cast<const char*>(&group.options), sizeof group.options);
    bytes.append(reinterpret_cast<const char*>(&group.lr), sizeof group.lr);
    group.first_like = first_of.try_emplace(std::move(bytes), g).first->second;
  }
}

// Waits for the device if the learning rate is a tensor on it.
double GroupOptions::host_lr(const Group& group) {
  return group.waits_for_lr ? value_of(group.lr) : group.options.lr;
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

const StepCoefficients<double>& GroupOptions::coefficients(std::size_t index, double step,
                                                           double grad_scale,
                                                           double clip_coefficient) {
  Group& group = groups_[groups_[index].first_like];
  if (group.step != step || group.grad_scale != grad_scale ||
      group.clip_coefficient != clip_coefficient || group.waits_for_lr) {
    StepOptions options = group.options;
    options.lr = host_lr(group);
    group.kept =
        radam::coefficients(terms_of(options, step), options, grad_scale, clip_coefficient);
    group.step = step;
    group.grad_scale = grad_scale;
    group.clip_coefficient = clip_coefficient;
  }
  return group.kept;
}

std::uint64_t GroupOptions::seed(std::size_t group) const {
  const std::vector<double>& numbers = groups_[group].numbers;
  return seed_ < numbers.size() ? static_cast<std::uint64_t>(numbers[seed_]) : 0;
}

DeviceOptions GroupOptions::for_device(std::size_t index, const dlpack::Device& device,
                                       bool capturing) {
  Group& group = groups_[index];
  DeviceOptions result{group.options, nullptr, 0, nullptr, nullptr, nullptr};
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
