#include "waiting.h"

#include "torch_tensors.h"

namespace radam {

Waiting::Waiting(const py::list& groups) {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    sizes_.push_back(length_of(params_of(groups, g)));
    for (std::size_t i = 0; i < sizes_.back(); ++i) places_.emplace_back(g, i);
  }
}

std::optional<std::vector<Place>> Waiting::take(const py::list& groups) {
  if (groups.size() != sizes_.size()) return std::nullopt;
  for (std::size_t g = 0; g < sizes_.size(); ++g) {
    if (length_of(params_of(groups, g)) != sizes_[g]) return std::nullopt;
  }
  std::vector<Place> taken;
  const auto has_gradient = [&](const Place& place) {
    PyObject* const params = params_of(groups, place.first);
    PyObject* const param = PyList_GET_ITEM(params, static_cast<Py_ssize_t>(place.second));
    return !gradient(param).is_none();
  };
  std::vector<Place> still;
  for (const Place& place : places_) (has_gradient(place) ? taken : still).push_back(place);
  if (!taken.empty()) places_ = std::move(still);
  return taken;
}

}  // namespace radam
