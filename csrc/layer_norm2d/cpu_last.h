// layer_norm2d on channels-last images (NHWC): the loops run over the channels of a pixel, for the vectoriser.
#pragma once

#include "layer_norm2d/cpu_tiles.h"
#include "layer_norm2d/math.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kTile = 64;  // pixels

// y of a pixel whose mean and deviation are known.
template <typename T, typename A>
void output_last_pixel(const T* __restrict x, T* __restrict y, A mean, A rstd, const A* __restrict weight,
                       const A* __restrict bias, int64_t channels, bool center) {
  if (bias != nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      store(y + c, layer_norm_scaled(static_cast<A>(load(x + c)), mean, rstd, center) * weight[c] + bias[c]);
    }
  } else {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      store(y + c, layer_norm_scaled(static_cast<A>(load(x + c)), mean, rstd, center) * weight[c]);
    }
  }
}

template <typename T, typename A>
void forward_last_pixel(const LayerNorm2dForward& args, int64_t batch, int64_t pixel) {
  const int64_t channels = args.size.channels;
  const T* __restrict x = args.x.at<const T>(batch, 0, pixel);
  A sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < channels; ++c) sum += load(x + c);
  const A mean = sum / static_cast<A>(channels);
#pragma omp simd reduction(+ : square)
  for (int64_t c = 0; c < channels; ++c) {
    const A centred = load(x + c) - mean;
    square += centred * centred;
  }
  const A rstd = layer_norm_rstd(square / static_cast<A>(channels), static_cast<A>(args.eps));
  output_last_pixel<T, A>(x, args.y.at<T>(batch, 0, pixel), mean, rstd, static_cast<const A*>(args.weight),
                          static_cast<const A*>(args.bias), channels, args.center);
  static_cast<A*>(args.mean)[batch * args.size.pixels + pixel] = mean;
  static_cast<A*>(args.rstd)[batch * args.size.pixels + pixel] = rstd;
}

// dweight and dbias are in the arithmetic type here; the caller adds them up in fp64.
template <typename T, typename A>
void backward_last_pixel(const LayerNorm2dBackward& args, int64_t batch, int64_t pixel, A* __restrict dweight,
                         A* __restrict dbias) {
  const int64_t channels = args.size.channels;
  const T* __restrict x = args.x.at<const T>(batch, 0, pixel);
  const T* __restrict dy = args.dy.at<const T>(batch, 0, pixel);
  T* __restrict dx = args.dx.at<T>(batch, 0, pixel);
  const A mean = static_cast<const A*>(args.mean)[batch * args.size.pixels + pixel];
  const A rstd = static_cast<const A*>(args.rstd)[batch * args.size.pixels + pixel];
  const A* __restrict weight = static_cast<const A*>(args.weight);
  const A lift = args.center ? A(0) : mean * rstd;
  A sum_g = 0, sum_gn = 0;
#pragma omp simd reduction(+ : sum_g, sum_gn)
  for (int64_t c = 0; c < channels; ++c) {
    const A gradient = load(dy + c);
    const A normalised = layer_norm_scaled(static_cast<A>(load(x + c)), mean, rstd, true) + lift;
    sum_g += gradient * weight[c];
    sum_gn += gradient * weight[c] * normalised;
    dweight[c] += gradient * normalised;
    dbias[c] += gradient;
  }
  const A mean_g = args.center ? sum_g / static_cast<A>(channels) : A(0);
  const A mean_gn = sum_gn / static_cast<A>(channels);
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const A h = layer_norm_scaled(static_cast<A>(load(x + c)), mean, rstd, true);
    store(dx + c, layer_norm_dx(static_cast<A>(load(dy + c) * weight[c]), h, rstd, mean_g, mean_gn));
  }
  if (args.y.data != nullptr) {
    output_last_pixel<T, A>(x, args.y.at<T>(batch, 0, pixel), mean, rstd, weight, static_cast<const A*>(args.bias),
                            channels, args.center);
  }
}

template <typename T, typename A>
void backward_last_tile(const LayerNorm2dBackward& args, const Tile& t, A* __restrict buffer,
                        double* __restrict dweight, double* __restrict dbias) {
  const int64_t channels = args.size.channels;
  A* __restrict dweight_part = buffer;
  A* __restrict dbias_part = buffer + channels;
  for (int64_t c = 0; c < 2 * channels; ++c) buffer[c] = 0;
  for (int64_t p = 0; p < t.count; ++p) {
    backward_last_pixel<T, A>(args, t.batch, t.pixel + p, dweight_part, dbias_part);
  }
  for (int64_t c = 0; c < channels; ++c) {
    dweight[c] += static_cast<double>(dweight_part[c]);
    dbias[c] += static_cast<double>(dbias_part[c]);
  }
}

template <typename T, typename A>
void forward_last(const LayerNorm2dForward& args, int threads) {
  parallel_for(tile_count(args.size, kTile), threads, 0, [&](int64_t i, char*) {
    const Tile t = tile_at(args.size, kTile, i);
    for (int64_t p = 0; p < t.count; ++p) forward_last_pixel<T, A>(args, t.batch, t.pixel + p);
  });
}

template <typename T, typename A>
void backward_last(const LayerNorm2dBackward& args, int threads) {
  const int64_t channels = args.size.channels;
  in_chunks<A>(args, threads, tile_count(args.size, kTile), sizeof(A) * static_cast<size_t>(2 * channels),
               [&](int64_t first, int64_t end, double* row, A* scratch) {
                 for (int64_t i = first; i < end; ++i) {
                   backward_last_tile<T, A>(args, tile_at(args.size, kTile, i), scratch, row, row + channels);
                 }
               });
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
