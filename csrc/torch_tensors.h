// Access to torch's tensors without libtorch: DLPack gives their memory, Python their attributes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>

#include "dlpack.h"
#include "segments.h"

namespace radam {

namespace py = pybind11;

// The memory of a contiguous tensor.
struct Range {
  void* address;
  dlpack::Device device;
  dlpack::DataType dtype;
  std::int64_t numel;
};

// Python objects that every step uses. They are created once and never released: they must outlive
// the teardown of Python modules.
struct TorchObjects {
  PyObject* tensor_type;
  PyObject* parameter_type;
  PyObject* params;
  PyObject* grad;
  PyObject* is_conj;
  PyObject* is_neg;
  PyObject* untyped_storage;
  PyObject* nbytes;
  std::array<PyObject*, kRoles> roles;
  PyObject* dense_copy;
  PyObject* increment_version;
  const dlpack::ExchangeApi* api;
};

// Finds torch's exchange interface; called once, before all other functions. dense_copy(tensor,
// like) returns a temporary copy of a tensor in the memory order of another one. Throws if torch
// has no such interface.
void connect(const py::object& dense_copy);

const TorchObjects& torch_objects();

inline void* address(const dlpack::TensorView& view) {
  return static_cast<char*>(view.data) + view.byte_offset;
}

bool is_tensor(PyObject* object);

// Throws ValueError if `tensor` is not contiguous; `name` is its name in the error message.
Range contiguous_range(const py::handle& tensor, const std::string& name);

// param.grad
py::object gradient(PyObject* param);

// mapping[key] for a dict or another mapping; null if the key is missing.
py::object item_of(PyObject* mapping, PyObject* key);

// group["params"] as a list or a tuple; an empty list if there are fewer groups.
py::object params_of(const py::list& groups, std::size_t group);

// The length and an item of a list or a tuple.
std::size_t length_of(const py::object& list);
PyObject* item_at(const py::object& list, std::size_t index);

// Whether a tensor with elements at this address has lost its memory: its storage is empty.
bool is_freed(PyObject* tensor, const void* address, const void* previous_address);

// A tensor with its own storage over a part of a contiguous buffer. It keeps the buffer alive.
py::object slice_of(const py::object& buffer, std::int64_t offset, std::vector<std::int64_t> shape,
                    std::vector<std::int64_t> strides);

}  // namespace radam
