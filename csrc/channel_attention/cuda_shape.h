// What the CUDA kernels of channel_attention say of their operands, on the tensor cores (cuda_products.h,
// cuda_apply.h) and beside them (cuda_tiles.h).
#pragma once

#include <cstdint>

#include "channel_attention/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

struct Head {
  unsigned image;
  unsigned of_image;

  // `head` of the heads of all images: they are fewer than a grid's blocks, and 64-bit division is slow.
  __device__ Head(const ChannelAttentionSize& size, unsigned head)
      : image(head / static_cast<unsigned>(size.heads)), of_image(head % static_cast<unsigned>(size.heads)) {}
};

// One head's channels of one third of an image batch.
template <typename T>
struct Plane {
  T* data;
  int64_t stride_channel;
  int64_t stride_pixel;

  __device__ Plane(const ImageView& view, const ChannelAttentionSize& size, Head head, int third)
      : data(view.at<T>(head.image, (third * size.heads + head.of_image) * size.width, 0)),
        stride_channel(view.stride_channel),
        stride_pixel(view.stride_pixel) {}
  __device__ bool planar() const { return stride_pixel == 1; }
  __device__ T* at(int64_t channel, int64_t pixel) const {
    return data + channel * stride_channel + pixel * stride_pixel;
  }
};

// What a block leaves of its slice of a head.
template <typename A>
struct Sums {
  A* products;  // [heads of all images, slices, c, c]
  A* squares;   // [heads of all images, slices, 2, c]; null: not wanted
  int64_t slices;
  int64_t slice_pixels;
};

// z = M x - scale * own over the pixels of a head; without `scale`, z = M x. The matrices [heads of all images, c, c]
// are read by rows or, transposed, by columns.
template <typename A>
struct Factor {
  const A* matrix;
  const A* scale;  // [heads of all images, 2, c], of which row `own`; or null
  bool transposed;
  int x_third;
  int z_third;
  int own_third;
};

}  // namespace
}  // namespace cpl::cuda
