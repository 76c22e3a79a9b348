#include "waiting.h"

#include <unordered_set>

#include "torch_tensors.h"

namespace radam {

Waiting::Waiting(const py::list& groups) {
  std::unordered_set<const PyObject*> known;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const py::object params = params_of(groups, g);
    sizes_.push_back(length_of(params));
    for (std::size_t i = 0; i < sizes_.back(); ++i) {
      if (known.insert(item_at(params, i)).second) places_.emplace_back(g, i);
    }
  }
}

std::optional<std::vector<Place>> Waiting::take(const py::list& groups) {
  if (groups.size() != sizes_.size()) return std::nullopt;
  std::vector<Place> taken, still;
  auto place = places_.begin();
  for (std::size_t g = 0; g < sizes_.size(); ++g) {
    const py::object params = params_of(groups, g);
    if (length_of(params) != sizes_[g]) return std::nullopt;
    for (; place != places_.end() && place->first == g; ++place) {
      const bool waits = gradient(item_at(params, place->second)).is_none();
      (waits ? still : taken).push_back(*place);
    }
  }
  if (!taken.empty()) places_ = std::move(still);
  return taken;
}

}  // namespace radam
