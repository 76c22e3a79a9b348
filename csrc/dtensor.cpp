#include "dtensor.h"

#include <structmember.h>  // T_OBJECT_EX

namespace radam {
namespace {

py::object attribute(PyObject* object, PyObject* name) {
  PyObject* const value = PyObject_GetAttr(object, name);
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

// A slot of a class: read from memory at its offset, which is faster than by its name.
struct Slot {
  PyObject* name;
  Py_ssize_t offset;  // 0: the attribute is no slot

  Slot(const py::handle& of, const char* named)
      : name(PyUnicode_InternFromString(named)), offset(0) {
    const py::object member = of.attr("__dict__").attr("get")(named);
    if (Py_TYPE(member.ptr()) != &PyMemberDescr_Type) return;
    const PyMemberDef& slot = *reinterpret_cast<PyMemberDescrObject*>(member.ptr())->d_member;
    if (slot.type == T_OBJECT_EX) offset = slot.offset;
  }

  // object: of exactly that class.
  py::object of(PyObject* object) const {
    if (offset != 0) {
      auto* const value = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
      if (value != nullptr) return py::reinterpret_borrow<py::object>(value);
    }
    return attribute(object, name);
  }
};

// Python objects that are never released, as in torch_tensors.h.
struct Objects {
  PyObject* dtensor;
  PyObject* async_tensor;
  PyObject* replicate;
  PyObject* shard;
  Slot local_tensor;
  Slot spec;
  PyObject* mesh;
  PyObject* placements;
  PyObject* shard_order;
  PyObject* dim;
  PyObject* trigger_wait;
  PyObject* without_torch_function;
};

Objects find_objects() {
  const auto kept = [](const py::module_& from, const char* name) {
    return py::object(from.attr(name)).release().ptr();
  };
  const auto tensor = py::module_::import("torch.distributed.tensor");
  const auto collectives = py::module_::import("torch.distributed._functional_collectives");
  return {kept(tensor, "DTensor"),
          kept(collectives, "AsyncCollectiveTensor"),
          kept(tensor, "Replicate"),
          kept(tensor, "Shard"),
          Slot(tensor.attr("DTensor"), "_local_tensor"),
          Slot(tensor.attr("DTensor"), "_spec"),
          PyUnicode_InternFromString("mesh"),
          PyUnicode_InternFromString("placements"),
          PyUnicode_InternFromString("shard_order"),
          PyUnicode_InternFromString("dim"),
          PyUnicode_InternFromString("trigger_wait"),
          kept(py::module_::import("torch._C"), "DisableTorchFunctionSubclass")};
}

// Called only where there is a DTensor, so that its module has been imported. The initialization of
// a static object would block other threads while find_objects() can release the GIL.
const Objects& objects() {
  static const Objects* found = nullptr;
  if (found == nullptr) found = new Objects(find_objects());
  return *found;
}

bool are_equal(PyObject* a, PyObject* b) {
  const int answer = PyObject_RichCompareBool(a, b, Py_EQ);
  if (answer < 0) throw py::error_already_set();
  return answer == 1;
}

// Along one dimension of the mesh. The comparison in Python would take 0.6 us.
bool are_alike(PyObject* a, PyObject* b) {
  if (a == b) return true;
  const Objects& names = objects();
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(a));
  if (type != reinterpret_cast<PyObject*>(Py_TYPE(b))) return false;
  if (type == names.replicate) return true;
  if (type == names.shard) {
    return are_equal(attribute(a, names.dim).ptr(), attribute(b, names.dim).ptr());
  }
  return are_equal(a, b);
}

bool are_all_alike(const py::object& a, const py::object& b) {
  if (a.is(b)) return true;
  if (!PyTuple_Check(a.ptr()) || !PyTuple_Check(b.ptr())) return are_equal(a.ptr(), b.ptr());
  const Py_ssize_t count = PyTuple_GET_SIZE(a.ptr());
  if (PyTuple_GET_SIZE(b.ptr()) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!are_alike(PyTuple_GET_ITEM(a.ptr(), i), PyTuple_GET_ITEM(b.ptr(), i))) return false;
  }
  return true;
}

}  // namespace

bool is_dtensor(PyObject* object) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object)) == objects().dtensor;
}

py::object local_tensor(PyObject* dtensor) {
  const Objects& names = objects();
  py::object local = names.local_tensor.of(dtensor);
  if (reinterpret_cast<PyObject*>(Py_TYPE(local.ptr())) != names.async_tensor) return local;
  PyObject* const ready = PyObject_CallMethodNoArgs(local.ptr(), names.trigger_wait);
  if (ready == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(ready);
}

WithoutTorchFunction::WithoutTorchFunction()
    : context_(py::handle(objects().without_torch_function)()) {
  context_.attr("__enter__")();
}

WithoutTorchFunction::~WithoutTorchFunction() {
  PyObject* const done =
      PyObject_CallMethod(context_.ptr(), "__exit__", "OOO", Py_None, Py_None, Py_None);
  if (done == nullptr) PyErr_WriteUnraisable(context_.ptr());
  Py_XDECREF(done);
}

Placement::Placement(PyObject* dtensor)
    : spec_(objects().spec.of(dtensor)),
      mesh_(attribute(spec_.ptr(), objects().mesh)),
      placements_(attribute(spec_.ptr(), objects().placements)),
      shard_order_(attribute(spec_.ptr(), objects().shard_order)) {}

bool Placement::is_of(PyObject* dtensor) const {
  return objects().spec.of(dtensor).is(spec_);
}

bool Placement::agrees_with(PyObject* dtensor) {
  const Objects& names = objects();
  py::object spec = names.spec.of(dtensor);
  if (spec.is(spec_) || spec.is(agreed_)) return true;
  const bool agrees = are_equal(mesh_.ptr(), attribute(spec.ptr(), names.mesh).ptr()) &&
                      are_all_alike(placements_, attribute(spec.ptr(), names.placements)) &&
                      are_equal(shard_order_.ptr(), attribute(spec.ptr(), names.shard_order).ptr());
  if (agrees) agreed_ = std::move(spec);
  return agrees;
}

}  // namespace radam
