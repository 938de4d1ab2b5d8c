// Forward of aggregate_prompts on CUDA: a block takes a tile of one image's C * H * W results, for a few images in
// turn, so that the prompts' tile is in cache from the first to the last.
#pragma once

#include <cmath>
#include <cstdint>

#include "aggregate_prompts/cuda_shape.h"
#include "aggregate_prompts/cuda_tables.h"
#include "aggregate_prompts/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

constexpr int64_t kImages = 4;  // of a forward block

template <typename T, typename A, bool kResize>
__global__ void __launch_bounds__(kThreads) forward(AggregateForward args, Shape s) {
  CPL_DYNAMIC_SHARED(unsigned char, memory);
  constexpr int kPer = kPerThread<kResize>;
  const unsigned groups = static_cast<unsigned>((s.batch + kImages - 1) / kImages), tiles = s.tiles(s.area);
  const unsigned tile = blockIdx.x / groups;
  const int64_t channel = tile / tiles, first = static_cast<int64_t>(tile % tiles) << s.tile_bits;
  const int64_t image = static_cast<int64_t>(blockIdx.x % groups) * kImages;
  const int64_t end = image + kImages < s.batch ? image + kImages : s.batch;
  const auto run = [&](const auto& read) {
#pragma unroll 1
    for (int e = 0; e < kPer; ++e) {
      const int64_t o = first + e * kThreads + threadIdx.x;
      if (o >= s.area) return;
      for (int64_t b = image; b < end; ++b) {
        A sum = 0;
        for (int64_t place = b * s.chosen; place < (b + 1) * s.chosen; ++place) {
          const int64_t n = args.indices[place];
          const bool known = n >= 0 && n < s.prompts;  // else the image is NaN, and nothing is read out of bounds
          const A weight = known ? weight_at<A>(args.weights, args.weights_dtype, place) : static_cast<A>(NAN);
          const int64_t plane = ((known ? n : 0) * s.channels + channel) * s.source;
          sum += weight * read(static_cast<const T*>(args.prompts) + plane, o);
        }
        store(static_cast<T*>(args.y) + (b * s.channels + channel) * s.area + o, sum);
      }
    }
  };
  if constexpr (kResize) {
    const ForwardTable<A> table(memory, s);
    run([&](const T* plane, int64_t o) {
      const int pixel = static_cast<int>(o);
      return table.read(plane, pixel / s.width, pixel % s.width, s);
    });
  } else {
    run([&](const T* plane, int64_t o) { return static_cast<A>(load(plane + o)); });
  }
}

}  // namespace
}  // namespace cpl::cuda
