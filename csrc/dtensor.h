// DTensors: their local tensors, and whether two of them are placed alike.
#pragma once

#include <pybind11/pybind11.h>

namespace radam {

namespace py = pybind11;

bool is_dtensor(PyObject* object);

// The local tensor of a DTensor. Waits for a collective operation that still computes it.
py::object local_tensor(PyObject* dtensor);

// Disables __torch_function__ of subclasses while it lives. torch then reads the attributes of a
// DTensor, which overrides no function in this way, three times faster.
class WithoutTorchFunction {
 public:
  WithoutTorchFunction();
  ~WithoutTorchFunction();
  WithoutTorchFunction(const WithoutTorchFunction&) = delete;
  WithoutTorchFunction& operator=(const WithoutTorchFunction&) = delete;

 private:
  py::object context_;
};

// Where the shards of a DTensor lie: its mesh, its placements and their order. Keeps no tensor.
class Placement {
 public:
  explicit Placement(PyObject* dtensor);

  // Whether a DTensor has the same specification, which a replaced DTensor has not.
  bool is_of(PyObject* dtensor) const;

  // Whether element i of the local tensor is the same element of the whole tensor in a DTensor of
  // the same shape.
  bool agrees_with(PyObject* dtensor);

 private:
  py::object spec_, mesh_, placements_, shard_order_;
  py::object agreed_;  // the last other specification that agreed
};

}  // namespace radam
