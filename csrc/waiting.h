// The parameters that belong to no launch yet.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include <pybind11/pybind11.h>

namespace radam {

namespace py = pybind11;

// The position of a parameter: its group, and its index in group["params"].
using Place = std::pair<std::size_t, std::size_t>;

// Parameters that have had no gradient. At first, these are all parameters; one that is listed more
// than once has only its first place.
class Waiting {
 public:
  explicit Waiting(const py::list& groups);

  // Removes and returns the places whose parameter has a gradient now. Returns nothing if the
  // number of groups or of their parameters has changed.
  std::optional<std::vector<Place>> take(const py::list& groups);

 private:
  std::vector<std::size_t> sizes_;
  std::vector<Place> places_;
};

}  // namespace radam
