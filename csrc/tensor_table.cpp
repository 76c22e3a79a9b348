#include "tensor_table.h"

#include <algorithm>
#include <cstring>

#include "torch_tensors.h"

namespace radam {
namespace {

// Rows to prefetch ahead: far enough to hide the latency of memory, near enough to stay in the L1
// cache.
constexpr std::size_t kAhead = 4;

// The first role in optimizer.state; all later roles are in it as well.
constexpr int kFirstState = role::step;

bool same(const dlpack::DataType& a, const dlpack::DataType& b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

bool same(const dlpack::Device& a, const dlpack::Device& b) {
  return a.type == b.type && a.id == b.id;
}

bool is_complex(const dlpack::DataType& dtype) {
  return dtype.code == dlpack::kComplex;
}

std::optional<DType> real_dtype(const dlpack::DataType& dtype) {
  if (dtype.lanes != 1) return {};
  if (dtype.code == dlpack::kBFloat && dtype.bits == 16) return DType::bfloat16;
  if (dtype.code == dlpack::kInt && dtype.bits == 16) return DType::int16;
  if (dtype.code != dlpack::kFloat && dtype.code != dlpack::kComplex) return {};
  switch (dtype.bits / (is_complex(dtype) ? 2 : 1)) {
    case 64:
      return DType::float64;
    case 32:
      return DType::float32;
    case 16:
      if (!is_complex(dtype)) return DType::float16;
  }
  return {};
}

// Whether two elements share memory.
bool overlaps_itself(const dlpack::TensorView& view) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, size
  for (std::int32_t d = 0; d < view.ndim; ++d) {
    if (view.shape[d] == 0) return false;
    if (view.shape[d] != 1) dims.emplace_back(view.strides[d], view.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  std::int64_t last = 0;  // offset of the last element in the dimensions of smaller strides
  bool is_nested = true;
  for (const auto& [stride, size] : dims) {
    is_nested &= stride > last;
    last += (size - 1) * stride;
  }
  if (is_nested || dims.empty()) return false;
  if (dims.front().first == 0) return true;
  std::vector<bool> is_taken(static_cast<std::size_t>(last) + 1, false);
  std::vector<std::int64_t> at(dims.size(), 0);
  for (std::int64_t offset = 0;;) {
    if (is_taken[static_cast<std::size_t>(offset)]) return true;
    is_taken[static_cast<std::size_t>(offset)] = true;
    std::size_t d = 0;
    for (; d < dims.size() && ++at[d] == dims[d].second; ++d) {
      offset -= (dims[d].second - 1) * dims[d].first;
      at[d] = 0;
    }
    if (d == dims.size()) return false;
    offset += dims[d].first;
  }
}

// Whether the elements fill one range of memory without gaps or overlaps, in any order.
bool is_dense(const dlpack::TensorView& view) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, size
  for (std::int32_t d = 0; d < view.ndim; ++d) {
    if (view.shape[d] == 0) return true;
    if (view.shape[d] != 1) dims.emplace_back(view.strides[d], view.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  std::int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool returns_false(PyObject* object, PyObject* method) {
  PyObject* const answer = PyObject_CallMethodNoArgs(object, method);
  if (answer == nullptr) throw py::error_already_set();
  Py_DECREF(answer);
  return answer == Py_False;
}

py::object dense_copy(PyObject* tensor, PyObject* like) {
  return py::reinterpret_steal<py::object>(
      py::handle(torch_objects().dense_copy)(py::handle(tensor), py::handle(like)).release());
}

// A step finds the Python objects in memory, not in a cache, and each look-up depends on the one
// before. Without prefetches, a step over 1,000 tensors is 25 % slower, and one over 700 DTensors
// 45 % (AMD EPYC). `sizes` was the address of the tensor's sizes at the last step, inside of the
// TensorImpl; the storage and the autograd metadata are usually allocated beside it. Inlining is
// forced, because the compiler drops calls of a function that only prefetches.
RADAM_INLINE void prefetch(const void* object, const void* sizes, int lines_before,
                           int lines_after) {
  __builtin_prefetch(object);
  const auto start = reinterpret_cast<std::uintptr_t>(sizes) - 64 * lines_before;
  for (int line = 0; line <= lines_before + lines_after; ++line) {
    __builtin_prefetch(reinterpret_cast<const void*>(start + 64 * line));
  }
}

bool is_written(int role) {
  return role != role::grad;
}

bool is_empty(const dlpack::TensorView& view) {
  return std::find(view.shape, view.shape + view.ndim, 0) != view.shape + view.ndim;
}

bool is_one_number(const dlpack::TensorView& view) {
  return std::all_of(view.shape, view.shape + view.ndim, [](std::int64_t n) { return n == 1; });
}

// The address of the Clip on a device; null for None and for a coefficient on the host.
const Clip* clip_on(const dlpack::Device& device, const py::object& clip) {
  if (!is_tensor(clip.ptr())) return nullptr;
  const Range range = contiguous_range(clip, "clip");
  if (!same(range.device, device) || range.numel * 8 < std::int64_t{sizeof(Clip)} ||
      range.dtype.code != dlpack::kFloat || range.dtype.bits != 64) {
    throw std::invalid_argument("clip has " + std::to_string(range.numel) +
                                " elements, expected float64 numbers on the parameters' device");
  }
  return static_cast<const Clip*>(range.address);
}

// The address of one number on a device; null for None.
const float* number_on(const dlpack::Device& device, const py::object& tensor, const char* name) {
  if (tensor.is_none()) return nullptr;
  const Range range = contiguous_range(tensor, name);
  if (!same(range.device, device) || range.numel != 1 || range.dtype.code != dlpack::kFloat ||
      range.dtype.bits != 32) {
    throw std::invalid_argument(
        std::string(name) + " has " + std::to_string(range.numel) +
        " elements, expected one float32 element on the parameters' device");
  }
  return static_cast<const float*>(range.address);
}

}  // namespace

TensorTable::TensorTable(const std::vector<std::string>& state, std::int64_t chunk,
                         bool counts_on_device, const std::vector<std::string>& draws)
    : chunk_(chunk) {
  if (chunk < 1 || (chunk & (chunk - 1)) != 0) {
    throw std::invalid_argument("chunk is " + std::to_string(chunk) + ", expected a power of two");
  }
  const auto role_of = [](const std::string& name, int first) {
    const auto* const end = kRoleNames + kRoles;
    const auto* const found = std::find(kRoleNames + first, end, name);
    if (found == end) throw std::invalid_argument("unknown tensor '" + name + "'");
    return found - kRoleNames;
  };
  work_.types.has[role::param] = work_.types.has[role::grad] = true;
  for (const std::string& name : state) work_.types.has[role_of(name, kFirstState)] = true;
  for (const std::string& name : draws) work_.types.draws[role_of(name, 0)] = true;
  work_.counts_on_device = counts_on_device;
}

void TensorTable::add(Place place, const std::vector<py::object>& types, const py::object& dtensor,
                      const py::object& flat, std::int64_t offset,
                      const std::optional<Elements>& elements) {
  for (const py::object& type : types) {
    if (!is_known(type.ptr())) types_.push_back(type);
  }
  Row row;
  row.place = place;
  row.state_index = rows_.empty() ? 0 : rows_.back().state_index + 1;
  if (!flat.is_none()) {
    const Range buffer = contiguous_range(flat, "flat");
    row.flat_at = static_cast<char*>(buffer.address) + offset * (buffer.dtype.bits / 8);
  }
  if (!dtensor.is_none()) {
    row.dtensor = static_cast<std::int32_t>(dtensors_.size());
    dtensors_.push_back({Placement(dtensor.ptr())});
  }
  if (elements) {
    row.elements = static_cast<std::int32_t>(elements_.size());
    elements_.push_back(*elements);
  }
  rows_.push_back(row);
}

// A tensor of an unknown type could keep its memory in other tensors.
bool TensorTable::has_own_memory(PyObject* tensor) const {
  return is_known(reinterpret_cast<PyObject*>(Py_TYPE(tensor)));
}

bool TensorTable::is_known(PyObject* type) const {
  if (type == torch_objects().parameter_type || type == torch_objects().tensor_type) return true;
  return std::any_of(types_.begin(), types_.end(),
                     [&](const py::object& known) { return known.ptr() == type; });
}

int TensorTable::element_bytes(int role) const {
  return dtypes_[role].bits / 8 / (is_complex(dtypes_[role]) ? 2 : 1);
}

// Reads a tensor of the launch's device and of the role's dtype. It is odd if its memory does not
// hold its values: a lazy conjugate, or a lazy negative, as the imaginary part of a lazy conjugate
// is. autograd produces a lazily negated dense gradient only if it has one element.
TensorTable::Fit TensorTable::view(PyObject* tensor, int role, std::int64_t numel,
                                   dlpack::TensorView& out) const {
  if (!has_own_memory(tensor)) return Fit::misfits;
  if (torch_objects().api->view_from_object(tensor, &out) != 0) {
    PyErr_Clear();
    return Fit::misfits;
  }
  if (types_known_ && !same(out.dtype, dtypes_[role])) return Fit::misfits;
  if (kRoleKinds[role] == RoleKind::counter && !work_.counts_on_device) {
    return out.device.type == dlpack::kCPU ? Fit::fits : Fit::misfits;
  }
  if (types_known_ && !same(out.device, device_)) return Fit::misfits;
  if (is_complex(out.dtype) && !returns_false(tensor, torch_objects().is_conj)) return Fit::odd;
  if (role == role::grad && numel == 1 && !returns_false(tensor, torch_objects().is_neg))
    return Fit::odd;
  return Fit::fits;
}

TensorTable::Fit TensorTable::compare_layout(const dlpack::TensorView& view, const Row& row) const {
  if (view.ndim != row.ndim) return Fit::misfits;
  const std::int64_t* const shape = layouts_.data() + row.layout;
  const std::int64_t* const strides = shape + row.ndim;
  Fit fit = Fit::fits;
  for (std::int32_t d = 0; d < row.ndim; ++d) {
    if (view.shape[d] != shape[d]) return Fit::misfits;
    // A dimension of size 0 or 1 can have any stride.
    if (shape[d] > 1 && row.numel > 0 && view.strides[d] != strides[d]) fit = Fit::odd;
  }
  return fit;
}

void TensorTable::keep_layout(const dlpack::TensorView& view, Row& row) {
  if (view.ndim > row.ndim) {
    row.layout = static_cast<std::int32_t>(layouts_.size());
    layouts_.resize(layouts_.size() + 2 * static_cast<std::size_t>(view.ndim));
  }
  row.ndim = view.ndim;
  row.numel = is_complex(view.dtype) ? 2 : 1;
  for (std::int32_t d = 0; d < view.ndim; ++d) {
    layouts_[row.layout + d] = view.shape[d];
    layouts_[row.layout + view.ndim + d] = view.strides[d];
    row.numel *= view.shape[d];
  }
}

// The state of a parameter. Its index is usually that of the last step, or the next one. A look-up
// by key would call torch.Tensor.__hash__ in Python.
PyObject* TensorTable::state_of(Row& row, PyObject* param) {
  const std::size_t next = row.state_index + 1;
  for (const std::size_t index : {row.state_index, next}) {
    if (index < states_.size() && states_[index].first == param) {
      row.state_index = index;
      return states_[index].second;
    }
  }
  const auto found = std::find_if(states_.begin(), states_.end(),
                                  [&](const auto& item) { return item.first == param; });
  if (found == states_.end()) return nullptr;
  row.state_index = static_cast<std::size_t>(found - states_.begin());
  return found->second;
}

std::optional<WithoutTorchFunction> TensorTable::without_torch_function() const {
  if (dtensors_.empty()) return std::nullopt;
  return std::make_optional<WithoutTorchFunction>();
}

bool TensorTable::fail(const Row& row, int role) {
  misfit_ = {row.place, kRoleNames[role]};
  return false;
}

// Keeps an object until release(). Returns it; null stays null.
PyObject* TensorTable::hold(py::object object) {
  if (object) held_.push_back(object.ptr());
  return object.release().ptr();
}

// Only the values are held. Reading a tensor can run Python code that drops a state; the keys are
// only compared.
void TensorTable::hold_states(const py::object& states) {
  py::object items = states;
  if (!PyDict_Check(states.ptr())) {
    items = py::dict();
    if (PyDict_Update(items.ptr(), states.ptr()) != 0) throw py::error_already_set();
  }
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(items.ptr(), &position, &key, &value)) {
    states_.emplace_back(key, Py_NewRef(value));
  }
}

bool TensorTable::read(const py::list& groups, const py::object& states, bool is_separate) {
  release();
  is_separate_ = is_separate || work_.types.draws_any();
  const auto faster = without_torch_function();
  misfit_ = {};
  has_moved_ = false;
  hold_states(states);
  py::object params;
  std::size_t group = groups.size();
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (i + kAhead < rows_.size()) {
      const Row& ahead = rows_[i + kAhead];
      const DTensors* const more = ahead.dtensor < 0 ? nullptr : &dtensors_[ahead.dtensor];
      for (int r = 0; r < kRoles; ++r) {
        if (!work_.types.has[r]) continue;
        const bool has_metadata = r < kFirstState;
        const bool is_beside = has_metadata && more == nullptr;
        prefetch(ahead.tensors[r], ahead.sizes[r], is_beside ? 5 : 3, is_beside ? 6 : 1);
        if (more == nullptr || kRoleKinds[r] == RoleKind::counter) continue;
        // Of the wrapper of a moment, only the Python object is read.
        if (has_metadata) prefetch(more->tensors[r], more->sizes[r], 1, 4);
        __builtin_prefetch(more->tensors[r]);
        __builtin_prefetch(static_cast<const char*>(more->tensors[r]) + 56);  // its slots
      }
      if (ahead.state_index < states_.size()) {
        __builtin_prefetch(states_[ahead.state_index].second);
      }
    }
    Row& row = rows_[i];
    if (row.place.first != group) {
      group = row.place.first;
      params = params_of(groups, group);
    }
    if (row.place.second >= length_of(params)) return fail(row, role::param);
    if (!read_row(row, item_at(params, row.place.second))) return false;
  }
  return true;
}

bool TensorTable::read_row(Row& row, PyObject* param) {
  const auto kept = py::reinterpret_borrow<py::object>(param);
  py::object grad = gradient(param);
  row.tensors[role::param] = param;
  row.tensors[role::grad] = grad.ptr();
  if (grad.is_none()) return true;

  work_.segments.emplace_back();
  Segment& segment = work_.segments.back();
  hold(kept);
  written_.push_back(param);
  PyObject* const local = hold(memory_of(row, role::param, kept));
  if (local == nullptr) return fail(row, role::param);
  dlpack::TensorView v;
  const Fit fit = view(local, role::param, row.numel, v);
  if (fit == Fit::misfits || !remember(row, role::param, local, v)) return fail(row, role::param);
  const bool is_new = row.ndim < 0;
  const bool is_as_before = fit == Fit::fits && compare_layout(v, row) == Fit::fits;
  PyObject* dense = local;
  row.is_copied = false;
  if (row.flat_at != nullptr && !is_new) {
    if (!is_as_before || (row.numel > 0 && address(v) != row.flat_at))
      return fail(row, role::param);
  }
  if (!is_as_before) {
    if (fit == Fit::odd || !is_dense(v)) {
      if (overlaps_itself(v)) return fail(row, role::param);
      row.is_copied = true;
      py::object copy = dense_copy(local, local);
      dense = copy.ptr();
      copied_.emplace_back(py::reinterpret_borrow<py::object>(local), std::move(copy));
      if (view(dense, role::param, row.numel, v) != Fit::fits) return fail(row, role::param);
    }
    keep_layout(v, row);
  }
  place(segment, row, role::param, v);

  const bool is_misplaced = row.dtensor >= 0 && is_dtensor(grad.ptr()) &&
                            !dtensors_[row.dtensor].placement.agrees_with(grad.ptr());
  if (is_misplaced) {
    // Only its types are known before it is redistributed.
    const py::object part = local_tensor(grad.ptr());
    if (view(part.ptr(), role::grad, row.numel, v) == Fit::misfits) return fail(row, role::grad);
    place(segment, row, role::grad, v);
    segment.at[role::grad] = nullptr;
  } else if (!read_gradient(row, segment, grad, dense)) {
    return false;
  }

  PyObject* const state = state_of(row, param);
  if (state == nullptr) return fail(row, role::step);
  for (int r = kFirstState; r < kRoles; ++r) {
    if (!work_.types.has[r]) continue;
    py::object item = item_of(state, torch_objects().roles[r]);
    if (!item) return fail(row, r);
    if (kRoleKinds[r] != RoleKind::counter) item = memory_of(row, r, std::move(item));
    PyObject* const tensor = hold(std::move(item));
    if (tensor == nullptr || view(tensor, r, row.numel, v) != Fit::fits) return fail(row, r);
    const bool fits =
        kRoleKinds[r] == RoleKind::counter ? is_one_number(v) : compare_layout(v, row) == Fit::fits;
    if (!fits) return fail(row, r);
    row.tensors[r] = tensor;
    if (!remember(row, r, tensor, v)) return fail(row, r);
    place(segment, row, r, v);
  }
  if (!types_known_) {
    if (const int odd = decide_types(); odd < kRoles) return fail(row, odd);
    types_known_ = true;
  }

  segment.numel = row.numel;
  if (work_.counts_on_device) {
    steps_.push_back({nullptr, 0});
    segment.coefficients_index = static_cast<std::int64_t>(work_.segments.size()) - 1;
    segment.options_index = static_cast<std::int64_t>(row.place.first);
  } else {
    // The counter is incremented in its own dtype, as in torch.
    void* const counter = segment.at[role::step];
    const double next = dtypes_[role::step].bits == 64 ? *static_cast<const double*>(counter) + 1.0
                                                       : *static_cast<const float*>(counter) + 1.0f;
    if (!is_count(next - 1.0)) return fail(row, role::step);
    steps_.push_back({counter, next});
    segment.coefficients_index = static_cast<std::int64_t>(count_index(row, next));
  }
  const bool has_segment = close_segment();
  if (has_segment && is_separate_) places_.push_back(row.place);
  if (has_segment && row.elements >= 0) {
    const auto& [parameter, offset, run, stride] = elements_[row.elements];
    const bool* const drawn = work_.types.draws;
    work_.draws.push_back(
        {0, 0, offset, run, stride,
         (drawn[role::param] ? kDrawsParam : 0) + (drawn[role::exp_avg_sq] ? kDrawsExpAvgSq : 0)});
    parameters_.push_back(parameter);
  }
  if (is_misplaced) {
    const std::ptrdiff_t last = static_cast<std::ptrdiff_t>(work_.segments.size()) - 1;
    misplaced_.push_back({static_cast<std::size_t>(&row - rows_.data()), has_segment ? last : -1,
                          kept, std::move(grad), py::reinterpret_borrow<py::object>(dense)});
  }
  return true;
}

// The tensor that holds the memory of one of a row's tensors: for a DTensor, its local tensor. Null
// if the row is one of DTensors and this is none, or if it is placed in another way than the
// parameter was when it was added. That of a gradient has been compared before.
py::object TensorTable::memory_of(Row& row, int role, py::object found) {
  if (row.dtensor < 0) return found;  // view() rejects a DTensor
  PyObject* const tensor = found.ptr();
  if (!is_dtensor(tensor)) return {};
  DTensors& more = dtensors_[row.dtensor];
  if (role < kFirstState && more.tensors[role] != tensor) {
    dlpack::TensorView v{};
    if (torch_objects().api->view_from_object(tensor, &v) != 0) PyErr_Clear();
    more.sizes[role] = v.shape;
  }
  more.tensors[role] = tensor;
  if (role == role::param && !more.placement.is_of(tensor)) return {};
  if (role >= kFirstState && !more.placement.agrees_with(tensor)) return {};
  py::object local = local_tensor(tensor);
  row.tensors[role] = local.ptr();
  return local;
}

bool TensorTable::read_gradient(Row& row, Segment& segment, py::object grad, PyObject* dense) {
  PyObject* const local = hold(memory_of(row, role::grad, std::move(grad)));
  if (local == nullptr) return fail(row, role::grad);
  dlpack::TensorView v;
  Fit fit = view(local, role::grad, row.numel, v);
  if (fit == Fit::misfits || !remember(row, role::grad, local, v)) return fail(row, role::grad);
  const Fit layout = compare_layout(v, row);
  if (layout == Fit::misfits) return fail(row, role::grad);
  if (fit == Fit::odd || layout == Fit::odd) {
    PyObject* const copy = hold(dense_copy(local, dense));
    fit = view(copy, role::grad, row.numel, v);
    if (fit != Fit::fits || compare_layout(v, row) != Fit::fits) return fail(row, role::grad);
  }
  place(segment, row, role::grad, v);
  return true;
}

std::vector<std::tuple<Place, py::object, py::object>> TensorTable::misplaced() const {
  std::vector<std::tuple<Place, py::object, py::object>> found;
  for (const Misplaced& it : misplaced_) {
    found.emplace_back(rows_[it.row].place, it.param, it.grad);
  }
  return found;
}

bool TensorTable::take_gradients(const std::vector<py::object>& redistributed) {
  for (std::size_t i = 0; i < misplaced_.size(); ++i) {
    const Misplaced& it = misplaced_[i];
    Segment none{};
    Segment& segment = it.segment < 0 ? none : work_.segments[it.segment];
    if (!read_gradient(rows_[it.row], segment, redistributed.at(i), it.dense.ptr())) return false;
  }
  misplaced_.clear();
  return true;
}

// Compares the address of a tensor with that of the last step. Returns false if its memory has been
// freed.
bool TensorTable::remember(Row& row, int role, PyObject* tensor, const dlpack::TensorView& view) {
  const void* const at = address(view);
  if (at == row.at[role] && at != nullptr) return true;
  if (!is_empty(view) && is_freed(tensor, at, row.at[role])) return false;
  has_moved_ |= at != row.at[role] && is_written(role);
  row.at[role] = at;
  return true;
}

// Stores the address of a tensor in its segment.
void TensorTable::place(Segment& segment, Row& row, int role, const dlpack::TensorView& view) {
  segment.at[role] = address(view);
  row.sizes[role] = view.shape;
  if (!types_known_) {
    dtypes_[role] = view.dtype;
    devices_[role] = view.device;
  }
}

std::vector<TensorTable::WrittenRange> TensorTable::written_ranges() const {
  std::vector<WrittenRange> ranges;
  for (const Row& row : rows_) {
    if (row.numel == 0 || row.tensors[role::grad] == Py_None) continue;
    for (int r = 0; r < kRoles; ++r) {
      if (!work_.types.has[r] || !is_written(r)) continue;
      const bool is_elsewhere = r == role::param && row.is_copied;
      const auto first = is_elsewhere ? 0 : reinterpret_cast<std::uintptr_t>(row.at[r]);
      const std::int64_t numel = kRoleKinds[r] == RoleKind::counter ? 1 : row.numel;
      const auto bytes = static_cast<std::uintptr_t>(numel * element_bytes(r));
      ranges.emplace_back(row.place, kRoleNames[r], first, is_elsewhere ? 0 : first + bytes);
    }
  }
  return ranges;
}

bool TensorTable::are_apart(const std::vector<const TensorTable*>& tables) {
  using Range = std::tuple<std::int32_t, std::int32_t, std::uintptr_t, std::uintptr_t>;
  std::vector<Range> ranges;
  for (const TensorTable* table : tables) {
    for (const auto& [place, name, first, end] : table->written_ranges()) {
      if (first == 0) return false;
      const bool on_host = name == kRoleNames[role::step] && !table->work_.counts_on_device;
      const dlpack::Device device = on_host ? dlpack::Device{dlpack::kCPU, 0} : table->device_;
      ranges.emplace_back(static_cast<std::int32_t>(device.type), device.id, first, end);
    }
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    const auto& [type, id, first, end] = ranges[i - 1];
    if (type == std::get<0>(ranges[i]) && id == std::get<1>(ranges[i]) &&
        std::get<2>(ranges[i]) < end) {
      return false;
    }
  }
  return true;
}

// Takes the device and the dtypes of the launch from its first row. Returns the first role that no
// kernel supports, or kRoles.
int TensorTable::decide_types() {
  device_ = devices_[role::param];
  const bool complex = is_complex(dtypes_[role::param]);
  DType* const types = work_.types.of;
  for (int r = 0; r < kRoles; ++r) {
    const bool on_host = kRoleKinds[r] == RoleKind::counter && !work_.counts_on_device;
    if (work_.types.has[r] && !on_host && !same(devices_[r], device_)) return r;
    const std::optional<DType> dtype = real_dtype(dtypes_[work_.types.has[r] ? r : role::exp_avg]);
    if (!dtype) return r;
    types[r] = *dtype;
    const DType arithmetic = work_.types.arithmetic_is_float64() ? DType::float64 : DType::float32;
    switch (kRoleKinds[r]) {
      case RoleKind::arithmetic:
        if (*dtype == DType::int16 || is_complex(dtypes_[r]) != complex) return r;
        break;
      case RoleKind::counter:
        if (*dtype != DType::float32 && *dtype != DType::float64) return r;
        break;
      case RoleKind::moment:
        // All in the arithmetic type, or all in that of a 16-bit parameter, or all in bfloat16.
        if (work_.types.has[r] && is_complex(dtypes_[r]) != complex) return r;
        if (*dtype != arithmetic && *dtype != types[role::param] &&
            (*dtype != DType::bfloat16 || arithmetic != DType::float32)) {
          return r;
        }
        if (*dtype != types[role::exp_avg]) return r;
        break;
      case RoleKind::master:
        if (!work_.types.has[r]) break;
        if (r == role::master_param) {
          const bool is_narrow =
              types[role::param] == DType::bfloat16 || types[role::param] == DType::float16;
          if (*dtype != DType::float32 || !is_narrow) return r;
        } else if (*dtype != DType::int16 || types[role::param] != DType::bfloat16) {
          return r;
        }
        break;
    }
  }
  return kRoles;
}

// The index of a group and step count in counts_; usually that of the last step.
std::size_t TensorTable::count_index(Row& row, double step) {
  const std::pair<std::size_t, double> wanted{row.place.first, step};
  if (!counts_.empty() && counts_.back() == wanted) return row.count_index = counts_.size() - 1;
  if (row.count_index < counts_.size() && counts_[row.count_index] == wanted)
    return row.count_index;
  if (row.count_index > counts_.size() || row.count_index == 0) {
    const auto known = std::find(counts_.begin(), counts_.end(), wanted);
    if (known != counts_.end()) return row.count_index = known - counts_.begin();
  }
  counts_.push_back(wanted);
  return row.count_index = counts_.size() - 1;
}

// Whether every array of the last segment begins at the end of the segment before it, so that both
// can be one segment.
bool TensorTable::is_continued() const {
  if (is_separate_ || work_.counts_on_device || work_.segments.size() < 2) return false;
  const Segment& last = work_.segments.back();
  const Segment& before = *(&last - 1);
  if (before.coefficients_index != last.coefficients_index) return false;
  for (int r = 0; r < kRoles; ++r) {
    if (kRoleKinds[r] == RoleKind::counter || !work_.types.has[r]) continue;
    if (before.at[r] == nullptr || last.at[r] == nullptr) return false;  // a misplaced gradient
    if (static_cast<char*>(before.at[r]) + before.numel * element_bytes(r) != last.at[r]) {
      return false;
    }
  }
  return true;
}

// Merges the last segment into the one before it, drops it if it is empty, or sets its `first`.
// Returns false if it is dropped.
bool TensorTable::close_segment() {
  const std::int64_t numel = work_.segments.back().numel;
  // A device also counts the steps of parameters without elements.
  if (numel == 0 && !work_.counts_on_device) {
    work_.segments.pop_back();
    return false;
  }
  if (is_continued()) {
    work_.segments.pop_back();
    work_.segments.back().numel += numel;
  } else {
    work_.segments.back().first = padded_;
  }
  const Segment& last = work_.segments.back();
  padded_ = last.first + ((last.numel + chunk_ - 1) & -chunk_);
  return true;
}

std::vector<std::int64_t> TensorTable::indices(
    const std::vector<std::int64_t>& first_of_group) const {
  std::vector<std::int64_t> found;
  for (const Place& place : places_) {
    found.push_back(first_of_group.at(place.first) + static_cast<std::int64_t>(place.second));
  }
  return found;
}

void TensorTable::compute(GroupOptions& options, const py::object& grad_scale,
                          const py::object& found_inf, bool capturing, const py::object& clip) {
  work_.clip = clip_on(device_, clip);
  compute_keys(options);
  work_.coefficients.clear();
  work_.options.clear();
  std::vector<std::int64_t> slots(options.size(), -1);
  if (work_.counts_on_device) {
    const float* const scale = number_on(device_, grad_scale, "grad_scale");
    const float* const overflow = number_on(device_, found_inf, "found_inf");
    scalars_ = {grad_scale, found_inf, clip};
    for (Segment& segment : work_.segments) {
      const std::size_t group = options.first_like(static_cast<std::size_t>(segment.options_index));
      if (slots[group] < 0) {
        slots[group] = static_cast<std::int64_t>(work_.options.size());
        DeviceOptions row = options.for_device(group, device_, capturing);
        row.grad_scale = scale;
        row.found_inf = overflow;
        row.clip = work_.clip;
        work_.options.push_back(row);
      }
      segment.options_index = slots[group];
    }
    return;
  }
  const double scale = grad_scale.is_none() ? 1.0 : grad_scale.cast<double>();
  const bool is_on_host = !clip.is_none() && work_.clip == nullptr;
  const double clip_coefficient = is_on_host ? clip.cast<double>() : 1.0;
  scalars_ = {clip};
  std::vector<double> steps(options.size(), 0);  // step count of the coefficients at slots[group]
  std::vector<std::int64_t> slot_of(counts_.size());
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    const auto& [group, step] = counts_[i];
    const std::size_t first = options.first_like(group);
    if (slots[first] < 0 || steps[first] != step) {
      slots[first] = rows++;
      steps[first] = step;
      add_coefficients(options.coefficients(group, step, scale, clip_coefficient));
    }
    slot_of[i] = slots[first];
  }
  for (Segment& segment : work_.segments)
    segment.coefficients_index = slot_of[segment.coefficients_index];
}

// The keys of the random bits; those of the step only if the host counts it.
void TensorTable::compute_keys(const GroupOptions& options) {
  for (std::size_t i = 0; i < work_.draws.size(); ++i) {
    const Segment& segment = work_.segments[i];
    Draw& draw = work_.draws[i];
    const bool on_host = !work_.counts_on_device;
    const auto group = on_host ? counts_[segment.coefficients_index].first
                               : static_cast<std::size_t>(segment.options_index);
    draw.key = parameter_key(options.seed(group), parameters_[i]);
    if (on_host) draw.step_key = step_key(draw.key, counts_[segment.coefficients_index].second);
  }
}

template <typename T>
void TensorTable::add_row(const StepCoefficients<double>& given) {
  const StepCoefficients<T> row = round_to<T>(given);
  const std::size_t at = work_.coefficients.size();
  work_.coefficients.resize(at + sizeof row);
  std::memcpy(work_.coefficients.data() + at, &row, sizeof row);
}

void TensorTable::add_coefficients(const StepCoefficients<double>& given) {
  work_.types.arithmetic_is_float64() || work_.clip != nullptr ? add_row<double>(given)
                                                               : add_row<float>(given);
}

const Work& TensorTable::start() {
  if (!misplaced_.empty()) throw std::logic_error("a gradient has not been redistributed");
  // The list is kept between steps, filled with None.
  const auto count = static_cast<Py_ssize_t>(written_.size());
  if (py::len(list_) != written_.size()) list_ = py::list(written_.size());
  const auto fill = [&](const auto& item) {
    for (Py_ssize_t i = 0; i < count; ++i) PyList_SetItem(list_.ptr(), i, Py_NewRef(item(i)));
  };
  const auto faster = without_torch_function();
  fill([&](Py_ssize_t i) { return written_[i]; });
  PyObject* const done = PyObject_CallOneArg(torch_objects().increment_version, list_.ptr());
  fill([](Py_ssize_t) { return Py_None; });
  if (done == nullptr) throw py::error_already_set();
  Py_DECREF(done);
  return work_;
}

void TensorTable::finish() {
  for (const Step& step : steps_) {
    if (step.counter == nullptr) continue;
    if (dtypes_[role::step].bits == 64) {
      *static_cast<double*>(step.counter) = step.next;
    } else {
      *static_cast<float*>(step.counter) = static_cast<float>(step.next);
    }
  }
  for (const auto& [param, copy] : copied_) param.attr("detach")().attr("copy_")(copy);
  release();
}

void TensorTable::release() {
  work_.segments.clear();
  work_.draws.clear();
  parameters_.clear();
  places_.clear();
  padded_ = 0;
  counts_.clear();
  steps_.clear();
  written_.clear();
  copied_.clear();
  scalars_.clear();
  misplaced_.clear();
  // Swapped out first: releasing a tensor can run Python code.
  std::vector<std::pair<PyObject*, PyObject*>> states;
  states.swap(states_);
  for (const auto& [param, state] : states) Py_DECREF(state);
  states.clear();
  if (states_.empty()) states_.swap(states);
  std::vector<PyObject*> held;
  held.swap(held_);
  for (std::size_t i = 0; i < held.size(); ++i) {
    if (i + 4 * kAhead < held.size()) __builtin_prefetch(held[i + 4 * kAhead], 1);
    Py_DECREF(held[i]);
  }
  held.clear();
  if (held_.empty()) held_.swap(held);
}

}  // namespace radam
