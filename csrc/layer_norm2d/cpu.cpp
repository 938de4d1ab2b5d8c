// layer_norm2d on CPU. Compiled once per instruction set; the loops over pixels (planar) or over
// channels (channels-last) are written for the compiler's vectoriser.
//
// Planar images are read once from memory: a tile of pixels, all channels, is gathered into a dense
// scratch buffer that stays in cache for the second look that the variance and the output need.
// (Looking twice at the image itself does not do: the planes of a 128x128 image are 64 KiB apart,
// so all channels of a pixel fall into the same cache sets and push each other out.)
#include <type_traits>

#include "common/parallel.h"
#include "layer_norm2d/math.h"
#include "layer_norm2d/op.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kMaxTile = 256;            // pixels; 1 KiB runs keep the hardware prefetcher busy
constexpr int64_t kMinTile = 32;             // half a KiB of fp32 would be lost to short runs below this
constexpr int64_t kScratchElements = 65536;  // 256 KiB of fp32: leaves room in a 1 MiB L2
constexpr int64_t kTilesWanted = 16;         // enough for threads to share when the image is small
constexpr int64_t kMaxChunks = 64;           // rows of dweight partial sums; fixed, so is their order
constexpr int64_t kFlush = 64;               // pixels summed in fp32 before going to fp64

// Depends on the size alone, never on the thread count: same tiles, same bits.
int64_t tile_pixels(const LayerNorm2dSize& size) {
  int64_t tile = kMaxTile;
  while (tile > kMinTile &&
         (tile * size.channels > kScratchElements || size.batch * ((size.pixels + tile - 1) / tile) < kTilesWanted)) {
    tile /= 2;
  }
  return tile;
}

struct Tile {
  int64_t batch;
  int64_t pixel;  // the first
  int64_t count;
};

Tile tile_at(const LayerNorm2dSize& size, int64_t tile, int64_t index) {
  const int64_t per_image = (size.pixels + tile - 1) / tile;
  const int64_t pixel = index % per_image * tile;
  return {index / per_image, pixel, pixel + tile <= size.pixels ? tile : size.pixels - pixel};
}

int64_t tile_count(const LayerNorm2dSize& size, int64_t tile) { return size.batch * ((size.pixels + tile - 1) / tile); }

template <typename A>
A* offset(const void* statistics, const LayerNorm2dSize& size, const Tile& t) {
  return static_cast<A*>(const_cast<void*>(statistics)) + t.batch * size.pixels + t.pixel;
}

template <typename T, typename A>
void forward_planar_tile(const LayerNorm2dForward& args, const Tile& t, int64_t tile, A* __restrict buffer) {
  const int64_t channels = args.size.channels, n = t.count;
  A* __restrict mean = offset<A>(args.mean, args.size, t);
  A* __restrict rstd = offset<A>(args.rstd, args.size, t);
  for (int64_t p = 0; p < n; ++p) mean[p] = rstd[p] = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const T* __restrict x = args.x.at<const T>(t.batch, c, t.pixel);
    A* __restrict row = buffer + c * tile;
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      row[p] = load(x + p);
      mean[p] += row[p];
    }
  }
  const A inverse = A(1) / static_cast<A>(channels);
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) mean[p] *= inverse;
  for (int64_t c = 0; c < channels; ++c) {
    const A* __restrict row = buffer + c * tile;
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) rstd[p] += (row[p] - mean[p]) * (row[p] - mean[p]);
  }
  const A eps = static_cast<A>(args.eps);
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) rstd[p] = layer_norm_rstd(rstd[p] * inverse, eps);
  const A* weight = static_cast<const A*>(args.weight);
  const A* bias = static_cast<const A*>(args.bias);
  const bool center = args.center;
  for (int64_t c = 0; c < channels; ++c) {
    const A* __restrict row = buffer + c * tile;
    T* __restrict y = args.y.at<T>(t.batch, c, t.pixel);
    const A w = weight[c], b = bias != nullptr ? bias[c] : A(0);
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) store(y + p, layer_norm_scaled(row[p], mean[p], rstd[p], center) * w + b);
  }
}

template <typename T, typename A>
void backward_planar_tile(const LayerNorm2dBackward& args, const Tile& t, int64_t tile, A* __restrict buffer,
                          double* __restrict dweight, double* __restrict dbias) {
  const int64_t channels = args.size.channels, n = t.count;
  const A* __restrict mean = offset<A>(args.mean, args.size, t);
  const A* __restrict rstd = offset<A>(args.rstd, args.size, t);
  const A* weight = static_cast<const A*>(args.weight);
  const bool center = args.center;
  A* __restrict h_all = buffer;                    // [C, tile]
  A* __restrict g_all = h_all + channels * tile;   // [C, tile]
  A* __restrict mean_g = g_all + channels * tile;  // [tile]
  A* __restrict mean_gn = mean_g + tile;           // [tile]
  A* __restrict lift = mean_gn + tile;             // [tile]: n = h + lift
  for (int64_t p = 0; p < n; ++p) {
    mean_g[p] = mean_gn[p] = 0;
    lift[p] = center ? A(0) : mean[p] * rstd[p];
  }
  for (int64_t c = 0; c < channels; ++c) {
    const T* __restrict x = args.x.at<const T>(t.batch, c, t.pixel);
    const T* __restrict dy = args.dy.at<const T>(t.batch, c, t.pixel);
    A* __restrict h_row = h_all + c * tile;
    A* __restrict g_row = g_all + c * tile;
    const A w = weight[c];
    A sum_weight = 0, sum_bias = 0;
#pragma omp simd reduction(+ : sum_weight, sum_bias)
    for (int64_t p = 0; p < n; ++p) {
      const A gradient = load(dy + p);
      const A h = layer_norm_scaled(static_cast<A>(load(x + p)), mean[p], rstd[p], true);
      const A normalised = h + lift[p];
      const A g = gradient * w;
      h_row[p] = h;
      g_row[p] = g;
      mean_g[p] += g;
      mean_gn[p] += g * normalised;
      sum_weight += gradient * normalised;
      sum_bias += gradient;
    }
    dweight[c] += static_cast<double>(sum_weight);
    dbias[c] += static_cast<double>(sum_bias);
  }
  const A inverse = A(1) / static_cast<A>(channels);
#pragma omp simd
  for (int64_t p = 0; p < n; ++p) {
    mean_g[p] = center ? mean_g[p] * inverse : A(0);
    mean_gn[p] *= inverse;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const A* __restrict h_row = h_all + c * tile;
    const A* __restrict g_row = g_all + c * tile;
    T* __restrict dx = args.dx.at<T>(t.batch, c, t.pixel);
#pragma omp simd
    for (int64_t p = 0; p < n; ++p) {
      store(dx + p, layer_norm_dx(g_row[p], h_row[p], rstd[p], mean_g[p], mean_gn[p]));
    }
  }
}

template <typename T, typename A>
void forward_last_pixel(const LayerNorm2dForward& args, int64_t batch, int64_t pixel) {
  const int64_t channels = args.size.channels;
  const T* __restrict x = args.x.at<const T>(batch, 0, pixel);
  T* __restrict y = args.y.at<T>(batch, 0, pixel);
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
  const A* __restrict weight = static_cast<const A*>(args.weight);
  const A* __restrict bias = static_cast<const A*>(args.bias);
  const bool center = args.center;
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
}

template <typename T, typename A>
void backward_last_tile(const LayerNorm2dBackward& args, const Tile& t, A* __restrict buffer,
                        double* __restrict dweight, double* __restrict dbias) {
  const int64_t channels = args.size.channels;
  A* __restrict dweight_part = buffer;
  A* __restrict dbias_part = buffer + channels;
  for (int64_t first = 0; first < t.count; first += kFlush) {
    for (int64_t c = 0; c < 2 * channels; ++c) buffer[c] = 0;
    const int64_t end = first + kFlush < t.count ? first + kFlush : t.count;
    for (int64_t p = first; p < end; ++p) {
      backward_last_pixel<T, A>(args, t.batch, t.pixel + p, dweight_part, dbias_part);
    }
    for (int64_t c = 0; c < channels; ++c) {
      dweight[c] += static_cast<double>(dweight_part[c]);
      dbias[c] += static_cast<double>(dbias_part[c]);
    }
  }
}

bool planar(const ImageView& view) { return view.stride_pixel == 1; }

}  // namespace

void layer_norm2d_forward(const LayerNorm2dForward& args, int threads) {
  const int64_t tile = tile_pixels(args.size), count = tile_count(args.size, tile);
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (planar(args.x)) {
      parallel_for(count, threads, sizeof(A) * static_cast<size_t>(tile * args.size.channels),
                   [&](int64_t i, char* scratch) {
                     forward_planar_tile<T, A>(args, tile_at(args.size, tile, i), tile, reinterpret_cast<A*>(scratch));
                   });
    } else {
      parallel_for(count, threads, 0, [&](int64_t i, char*) {
        const Tile t = tile_at(args.size, tile, i);
        for (int64_t p = 0; p < t.count; ++p) forward_last_pixel<T, A>(args, t.batch, t.pixel + p);
      });
    }
  });
}

void layer_norm2d_backward(const LayerNorm2dBackward& args, int threads) {
  const int64_t channels = args.size.channels;
  const int64_t tile = tile_pixels(args.size), count = tile_count(args.size, tile);
  const int64_t chunks = count < kMaxChunks ? count : kMaxChunks;
  // One row of partial sums a chunk, in fp64; a chunk is a fixed run of tiles, whichever thread takes it.
  const Scratch partial(sizeof(double) * static_cast<size_t>(2 * chunks * channels));
  double* const rows = reinterpret_cast<double*>(partial.data());
  for (int64_t i = 0; i < 2 * chunks * channels; ++i) rows[i] = 0;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const bool is_planar = planar(args.x);
    const int64_t elements = is_planar ? (2 * channels + 3) * tile : 2 * channels;
    parallel_for(chunks, threads, sizeof(A) * static_cast<size_t>(elements), [&](int64_t chunk, char* scratch) {
      double* dweight = rows + 2 * chunk * channels;
      A* buffer = reinterpret_cast<A*>(scratch);
      for (int64_t i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i) {
        const Tile t = tile_at(args.size, tile, i);
        if (is_planar) {
          backward_planar_tile<T, A>(args, t, tile, buffer, dweight, dweight + channels);
        } else {
          backward_last_tile<T, A>(args, t, buffer, dweight, dweight + channels);
        }
      }
    });
    for (int64_t c = 0; c < channels; ++c) {
      double dweight = 0, dbias = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        dweight += rows[2 * chunk * channels + c];
        dbias += rows[(2 * chunk + 1) * channels + c];
      }
      static_cast<A*>(args.dweight)[c] = static_cast<A>(dweight);
      static_cast<A*>(args.dbias)[c] = static_cast<A>(dbias);
    }
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
