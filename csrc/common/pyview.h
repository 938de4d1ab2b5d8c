// How Python hands over tensors: a pointer as an int, a view as a tuple (pointer, strides in elements).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/view.h"

namespace cpl {

using Address = std::uintptr_t;

inline void* pointer(Address address) { return reinterpret_cast<void*>(address); }

}  // namespace cpl

namespace pybind11::detail {

// (data_ptr, stride_batch, stride_channel, stride_pixel) -> cpl::ImageView
template <>
struct type_caster<cpl::ImageView> {
  PYBIND11_TYPE_CASTER(cpl::ImageView, const_name("tuple[int, int, int, int]"));

  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 4) return false;
    value.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(source.ptr(), 0));
    value.stride_batch = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), 1));
    value.stride_channel = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), 2));
    value.stride_pixel = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), 3));
    if (PyErr_Occurred() == nullptr) return true;
    PyErr_Clear();
    return false;
  }
};

}  // namespace pybind11::detail
