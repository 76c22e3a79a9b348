#include "torch_tensors.h"

#include <memory>
#include <stdexcept>
#include <utility>

namespace radam {
namespace {

TorchObjects the_objects{};

}  // namespace

void connect(const py::object& dense_copy) {
  const py::module_ torch = py::module_::import("torch");
  const py::object tensor = torch.attr("Tensor");
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  if (api == nullptr) throw py::error_already_set();
  if (api->major != dlpack::kMajorVersion || api->view_from_object == nullptr) {
    throw std::runtime_error("torch's DLPack exchange API has major version " +
                             std::to_string(api->major) + ", expected " +
                             std::to_string(dlpack::kMajorVersion));
  }
  TorchObjects names{};
  names.tensor_type = py::object(tensor).release().ptr();
  names.parameter_type = py::object(torch.attr("nn").attr("Parameter")).release().ptr();
  names.params = PyUnicode_InternFromString("params");
  names.grad = PyUnicode_InternFromString("grad");
  names.is_conj = PyUnicode_InternFromString("is_conj");
  names.is_neg = PyUnicode_InternFromString("is_neg");
  names.untyped_storage = PyUnicode_InternFromString("untyped_storage");
  names.nbytes = PyUnicode_InternFromString("nbytes");
  for (int r = 0; r < kRoles; ++r) names.roles[r] = PyUnicode_InternFromString(kRoleNames[r]);
  names.dense_copy = py::object(dense_copy).release().ptr();
  names.increment_version =
      py::object(torch.attr("autograd").attr("graph").attr("increment_version")).release().ptr();
  names.api = api;
  the_objects = names;
}

const TorchObjects& torch_objects() {
  if (the_objects.api == nullptr) throw std::logic_error("radam_fused._C is not connected");
  return the_objects;
}

bool is_tensor(PyObject* object) {
  return PyObject_IsInstance(object, torch_objects().tensor_type) == 1;
}

Range contiguous_range(const py::handle& tensor, const std::string& what) {
  dlpack::TensorView v{};
  if (torch_objects().api->view_from_object(tensor.ptr(), &v) != 0) throw py::error_already_set();
  std::int64_t numel = 1;
  for (std::int32_t d = v.ndim - 1; d >= 0; --d) {
    if (v.shape[d] > 1 && v.strides[d] != numel) {
      throw std::invalid_argument(what + " is not contiguous");
    }
    numel *= v.shape[d];
  }
  return {address(v), v.device, v.dtype, numel};
}

py::object gradient(PyObject* param) {
  PyObject* const grad = PyObject_GetAttr(param, torch_objects().grad);
  if (grad == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(grad);
}

py::object item_of(PyObject* mapping, PyObject* key) {
  if (PyDict_Check(mapping)) {
    PyObject* const value = PyDict_GetItemWithError(mapping, key);
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(value);
  }
  PyObject* const value = PyObject_GetItem(mapping, key);
  if (value == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_KeyError)) throw py::error_already_set();
    PyErr_Clear();
  }
  return py::reinterpret_steal<py::object>(value);
}

py::object params_of(const py::list& groups, std::size_t group) {
  if (group >= groups.size()) return py::list();
  PyObject* const held = PyList_GET_ITEM(groups.ptr(), static_cast<Py_ssize_t>(group));
  const py::object params = item_of(held, torch_objects().params);
  if (!params) throw py::key_error("parameter group " + std::to_string(group) + " has no 'params'");
  if (PyList_Check(params.ptr()) || PyTuple_Check(params.ptr())) return params;
  // The rows of a tensor are no parameters.
  if (is_tensor(params.ptr())) throw py::type_error("params is a tensor");
  PyObject* const list = PySequence_Fast(params.ptr(), "params is not iterable");
  if (list == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(list);
}

std::size_t length_of(const py::object& list) {
  return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(list.ptr()));
}

PyObject* item_at(const py::object& list, std::size_t index) {
  return PySequence_Fast_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(index));
}

bool is_freed(PyObject* tensor, const void* address, const void* previous_address) {
  if (address == nullptr) return true;
  // At a storage offset, the address is the offset alone: far below the addresses of most systems.
  // Otherwise only a new address is worth a question to Python.
  constexpr std::uintptr_t kLargestOffset = std::uintptr_t{1} << 44;
  if (address == previous_address || reinterpret_cast<std::uintptr_t>(address) >= kLargestOffset) {
    return false;
  }
  const TorchObjects& names = torch_objects();
  const auto storage =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, names.untyped_storage));
  if (!storage) throw py::error_already_set();
  const auto bytes =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(storage.ptr(), names.nbytes));
  if (!bytes) throw py::error_already_set();
  return bytes.cast<std::int64_t>() == 0;
}

py::object slice_of(const py::object& buffer, std::int64_t offset, std::vector<std::int64_t> shape,
                    std::vector<std::int64_t> strides) {
  struct Slice {
    dlpack::ManagedTensor tensor;
    py::object buffer;
    std::vector<std::int64_t> shape, strides;
  };
  const Range range = contiguous_range(buffer, "buffer");
  std::int64_t last = offset;
  bool is_empty = false;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    is_empty |= shape[d] == 0;
    last += (shape[d] - 1) * strides.at(d);
  }
  if (offset < 0 || offset > range.numel || (!is_empty && last >= range.numel)) {
    throw std::invalid_argument("the slice at offset " + std::to_string(offset) +
                                " does not lie within its buffer of " +
                                std::to_string(range.numel) + " elements");
  }
  auto slice = std::make_unique<Slice>(Slice{{}, buffer, std::move(shape), std::move(strides)});
  slice->tensor = {dlpack::kMajorVersion,
                   0,
                   slice.get(),
                   [](dlpack::ManagedTensor* self) {
                     if (!Py_IsInitialized()) return;  // the process is exiting
                     const py::gil_scoped_acquire gil;
                     delete static_cast<Slice*>(self->context);
                   },
                   0,
                   {static_cast<char*>(range.address) + offset * (range.dtype.bits / 8),
                    range.device, static_cast<std::int32_t>(slice->shape.size()), range.dtype,
                    slice->shape.data(), slice->strides.data(), 0}};
  void* made = nullptr;
  if (torch_objects().api->object_from_owned(&slice->tensor, &made) != 0)
    throw py::error_already_set();
  slice.release();  // torch owns it now
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(made));
}

}  // namespace radam
