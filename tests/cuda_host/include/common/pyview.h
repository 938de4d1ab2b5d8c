// Stands in for csrc/common/pyview.h, so that an op's bind.h, and with it the order in which Python
// passes the arguments, is what runs here too. Python's pointers become those of the copies on this side.
#pragma once

#include <cstdint>

#include "common/view.h"
#include "cuda_host/entry.h"

namespace cpl {

using Address = std::uintptr_t;

inline void* pointer(Address address) { return reinterpret_cast<void*>(address); }

}  // namespace cpl

namespace cuda_host {

// int: a stream, null, or the address of a tensor.
template <>
struct Decode<cpl::Address> {
  static cpl::Address from(Request& request) { return reinterpret_cast<cpl::Address>(request.address("i")); }
};

// (data_ptr, stride_batch, stride_channel, stride_pixel)
template <>
struct Decode<cpl::ImageView> {
  static cpl::ImageView from(Request& request) {
    request.expect("t");
    if (request.integer() != 4) throw std::invalid_argument("an image is a tuple of 4");
    cpl::ImageView view;
    view.data = request.address("i");
    view.stride_batch = Decode<int64_t>::from(request);
    view.stride_channel = Decode<int64_t>::from(request);
    view.stride_pixel = Decode<int64_t>::from(request);
    return view;
  }
};

}  // namespace cuda_host
