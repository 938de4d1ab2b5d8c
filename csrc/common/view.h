// Views over raw pointers: what Python hands over, and nothing of torch.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/macros.h"

namespace cpl {

// An image batch [B, C, P] (P = H * W pixels in one stride), strides in elements. Sizes travel
// beside it, once for all views of a call.
struct ImageView {
  void* data = nullptr;
  int64_t stride_batch = 0;
  int64_t stride_channel = 0;
  int64_t stride_pixel = 0;

  template <typename T>
  CPL_HD T* at(int64_t batch, int64_t channel, int64_t pixel) const {
    return static_cast<T*>(data) + batch * stride_batch + channel * stride_channel + pixel * stride_pixel;
  }
};

}  // namespace cpl
