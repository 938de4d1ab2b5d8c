// layer_norm2d on CUDA.
//
// Planar (pixel stride 1): a block takes kPixels neighbouring pixels; its threads are laid out as
// kPixels x kGroups, group g summing channels g, g + kGroups, ... Neighbouring threads read
// neighbouring addresses; the second and third look at the tile come from L1 or L2.
// Channels-last (channel stride 1): a warp takes a pixel, its lanes the channels.
//
// The backward adds dweight and dbias up without atomics: blocks are persistent, block b walks tiles
// b, b + gridDim, ... in order and leaves one row of sums; a second kernel adds the rows in order.
#include <type_traits>

#include "common/launch.h"
#include "layer_norm2d/math.h"
#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

constexpr int kPixels = 64;  // two warps side by side: 256-byte rows of fp32
constexpr int kGroups = 4;   // 256 threads a block
constexpr int kWarp = 32;
constexpr int kWarps = 8;            // pixels a block holds at once, channels-last
constexpr int64_t kMaxRows = 528;    // persistent blocks: four on each of 132 multiprocessors
constexpr int64_t kTilesPerRow = 4;  // below this a row costs more than it saves
constexpr int kReduceThreads = 256;

struct Planar {
  static constexpr int64_t kTile = kPixels;
};
struct ChannelsLast {
  static constexpr int64_t kTile = kWarps;
};

int64_t tiles(const LayerNorm2dSize& size, int64_t tile) { return size.batch * ((size.pixels + tile - 1) / tile); }

// Sum over the kGroups threads that share a pixel; every one of them gets it. All threads of the
// block must call it.
template <typename A>
__device__ A sum_over_groups(A value, A (*shared)[kPixels]) {
  __syncthreads();  // whoever still reads the last sum must be done
  shared[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  A sum = 0;
  for (int g = 0; g < kGroups; ++g) sum += shared[g][threadIdx.x];
  return sum;
}

template <typename T, typename A>
__global__ void __launch_bounds__(kPixels* kGroups) forward_planar(LayerNorm2dForward args) {
  __shared__ A shared[kGroups][kPixels];
  const int64_t tiles_per_image = (args.size.pixels + kPixels - 1) / kPixels;
  const int64_t batch = blockIdx.x / tiles_per_image;
  const int64_t pixel = blockIdx.x % tiles_per_image * kPixels + threadIdx.x;
  const bool inside = pixel < args.size.pixels;  // the others still take part in the barriers
  const int64_t channels = args.size.channels;

  A sum = 0;
  for (int64_t c = threadIdx.y; inside && c < channels; c += kGroups) {
    sum += load(args.x.at<const T>(batch, c, pixel));
  }
  const A mean = sum_over_groups(sum, shared) / static_cast<A>(channels);
  A square = 0;
  for (int64_t c = threadIdx.y; inside && c < channels; c += kGroups) {
    const A centred = load(args.x.at<const T>(batch, c, pixel)) - mean;
    square += centred * centred;
  }
  const A variance = sum_over_groups(square, shared) / static_cast<A>(channels);
  if (!inside) return;
  const A rstd = gpu::layer_norm_rstd(variance, static_cast<A>(args.eps));
  const A* weight = static_cast<const A*>(args.weight);
  const A* bias = static_cast<const A*>(args.bias);
  for (int64_t c = threadIdx.y; c < channels; c += kGroups) {
    const A n =
        gpu::layer_norm_scaled(static_cast<A>(load(args.x.at<const T>(batch, c, pixel))), mean, rstd, args.center);
    store(args.y.at<T>(batch, c, pixel), n * weight[c] + (bias != nullptr ? bias[c] : A(0)));
  }
  if (threadIdx.y == 0) {
    static_cast<A*>(args.mean)[batch * args.size.pixels + pixel] = mean;
    static_cast<A*>(args.rstd)[batch * args.size.pixels + pixel] = rstd;
  }
}

template <typename T, typename A>
__global__ void __launch_bounds__(kWarp* kWarps) forward_last(LayerNorm2dForward args) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (index >= args.size.batch * args.size.pixels) return;  // a whole warp leaves: no barrier follows
  const int64_t batch = index / args.size.pixels, pixel = index % args.size.pixels;
  const int64_t channels = args.size.channels;

  A sum = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) sum += load(args.x.at<const T>(batch, c, pixel));
  const A mean = warp_sum(sum) / static_cast<A>(channels);
  A square = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
    const A centred = load(args.x.at<const T>(batch, c, pixel)) - mean;
    square += centred * centred;
  }
  const A rstd = gpu::layer_norm_rstd(warp_sum(square) / static_cast<A>(channels), static_cast<A>(args.eps));
  const A* weight = static_cast<const A*>(args.weight);
  const A* bias = static_cast<const A*>(args.bias);
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
    const A n =
        gpu::layer_norm_scaled(static_cast<A>(load(args.x.at<const T>(batch, c, pixel))), mean, rstd, args.center);
    store(args.y.at<T>(batch, c, pixel), n * weight[c] + (bias != nullptr ? bias[c] : A(0)));
  }
  if (threadIdx.x == 0) {
    static_cast<A*>(args.mean)[index] = mean;
    static_cast<A*>(args.rstd)[index] = rstd;
  }
}

template <typename A>
struct Gradient {
  A upstream;    // dy
  A g;           // dy * weight
  A h;           // normalised x
  A normalised;  // what weight multiplied
};

template <typename T, typename A>
__device__ Gradient<A> gradient_at(const LayerNorm2dBackward& args, int64_t batch, int64_t c, int64_t pixel, A mean,
                                   A rstd) {
  const A upstream = load(args.dy.at<const T>(batch, c, pixel));
  const A x = load(args.x.at<const T>(batch, c, pixel));
  const A h = gpu::layer_norm_scaled(x, mean, rstd, true);
  return {upstream, upstream * static_cast<const A*>(args.weight)[c], h,
          gpu::layer_norm_scaled(x, mean, rstd, args.center)};
}

// partial: [gridDim.x, 2, C]; every entry is written, whatever was there before.
template <typename T, typename A>
__global__ void __launch_bounds__(kPixels* kGroups) backward_planar(LayerNorm2dBackward args, A* partial) {
  __shared__ A shared[kGroups][kPixels];
  __shared__ A halves[kGroups][2][2];  // [group][dweight, dbias][which of the group's two warps]
  const int64_t channels = args.size.channels;
  const int64_t tiles_per_image = (args.size.pixels + kPixels - 1) / kPixels;
  const int64_t tile_count = args.size.batch * tiles_per_image;
  A* row = partial + blockIdx.x * 2 * channels;
  // Entry c belongs to thread 0 of group c % kGroups for the whole kernel: no race, a fixed order.
  if (threadIdx.x == 0) {
    for (int64_t c = threadIdx.y; c < channels; c += kGroups) row[c] = row[channels + c] = 0;
  }
  for (int64_t tile = blockIdx.x; tile < tile_count; tile += gridDim.x) {
    const int64_t batch = tile / tiles_per_image;
    const int64_t pixel = tile % tiles_per_image * kPixels + threadIdx.x;
    const bool inside = pixel < args.size.pixels;
    const A mean = inside ? static_cast<const A*>(args.mean)[batch * args.size.pixels + pixel] : A(0);
    const A rstd = inside ? static_cast<const A*>(args.rstd)[batch * args.size.pixels + pixel] : A(0);
    A sum_g = 0, sum_gn = 0;
    // Every thread runs the same number of rounds, because of the barriers inside.
    for (int64_t first = 0; first < channels; first += kGroups) {
      const int64_t c = first + threadIdx.y;
      A dweight = 0, dbias = 0;
      if (inside && c < channels) {
        const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
        sum_g += at.g;
        sum_gn += at.g * at.normalised;
        dweight = at.upstream * at.normalised;
        dbias = at.upstream;
      }
      dweight = warp_sum(dweight);
      dbias = warp_sum(dbias);
      if (threadIdx.x % kWarp == 0) {
        halves[threadIdx.y][0][threadIdx.x / kWarp] = dweight;
        halves[threadIdx.y][1][threadIdx.x / kWarp] = dbias;
      }
      __syncthreads();
      if (threadIdx.x == 0 && c < channels) {
        row[c] += halves[threadIdx.y][0][0] + halves[threadIdx.y][0][1];
        row[channels + c] += halves[threadIdx.y][1][0] + halves[threadIdx.y][1][1];
      }
      __syncthreads();
    }
    const A mean_g = args.center ? sum_over_groups(sum_g, shared) / static_cast<A>(channels) : A(0);
    const A mean_gn = sum_over_groups(sum_gn, shared) / static_cast<A>(channels);
    for (int64_t c = threadIdx.y; inside && c < channels; c += kGroups) {
      const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
      store(args.dx.at<T>(batch, c, pixel), gpu::layer_norm_dx(at.g, at.h, rstd, mean_g, mean_gn));
    }
  }
}

// Rows of sums, one per warp, in global memory (L1 holds them while the block walks its pixels); each
// entry is touched by one lane only.
template <typename T, typename A>
__global__ void __launch_bounds__(kWarp* kWarps) backward_last(LayerNorm2dBackward args, A* partial) {
  const int64_t channels = args.size.channels;
  A* row = partial + (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y) * 2 * channels;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) row[c] = row[channels + c] = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
       index < args.size.batch * args.size.pixels; index += stride) {
    const int64_t batch = index / args.size.pixels, pixel = index % args.size.pixels;
    const A mean = static_cast<const A*>(args.mean)[index];
    const A rstd = static_cast<const A*>(args.rstd)[index];
    A sum_g = 0, sum_gn = 0;
    // Unrolled, the loops take up to 100 registers: four blocks no longer fit, and fp64 spills on sm_86.
#pragma unroll 1
    for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
      const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
      sum_g += at.g;
      sum_gn += at.g * at.normalised;
      row[c] += at.upstream * at.normalised;
      row[channels + c] += at.upstream;
    }
    const A mean_g = args.center ? warp_sum(sum_g) / static_cast<A>(channels) : A(0);
    const A mean_gn = warp_sum(sum_gn) / static_cast<A>(channels);
    for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
      const Gradient<A> at = gradient_at<T, A>(args, batch, c, pixel, mean, rstd);
      store(args.dx.at<T>(batch, c, pixel), gpu::layer_norm_dx(at.g, at.h, rstd, mean_g, mean_gn));
    }
  }
}

// One thread a column of partial [rows, 2 * C]; fp64, so that thousands of rows lose nothing.
template <typename A>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_rows(const A* partial, A* dweight, A* dbias, int64_t rows, int64_t channels) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (column >= 2 * channels) return;
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += static_cast<double>(partial[r * 2 * channels + column]);
  (column < channels ? dweight[column] : dbias[column - channels]) = static_cast<A>(sum);
}

bool planar(const ImageView& view) { return view.stride_pixel == 1; }

unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument("layer_norm2d: more than 2^31 - 1 blocks; split the batch");
  return static_cast<unsigned>(blocks);
}

int64_t persistent_blocks(int64_t tile_count) {
  const int64_t wanted = (tile_count + kTilesPerRow - 1) / kTilesPerRow;
  return wanted < 1 ? 1 : wanted < kMaxRows ? wanted : kMaxRows;
}

}  // namespace

// Enough for either layout: channels-last leaves a row for each of a block's warps.
int64_t layer_norm2d_partial_rows(const LayerNorm2dSize& size) {
  const int64_t planar_rows = persistent_blocks(tiles(size, Planar::kTile));
  const int64_t last_rows = kWarps * persistent_blocks(tiles(size, ChannelsLast::kTile));
  return planar_rows > last_rows ? planar_rows : last_rows;
}

void layer_norm2d_forward(const LayerNorm2dForward& args, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (planar(args.x)) {
      CPL_LAUNCH((forward_planar<T, A>), grid_size(tiles(args.size, Planar::kTile)), dim3(kPixels, kGroups), 0, stream,
                 args);
    } else {
      const int64_t blocks = (args.size.batch * args.size.pixels + kWarps - 1) / kWarps;
      CPL_LAUNCH((forward_last<T, A>), grid_size(blocks), dim3(kWarp, kWarps), 0, stream, args);
    }
  });
}

void layer_norm2d_backward(const LayerNorm2dBackward& args, void* partial, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    int64_t rows = 0;
    if (planar(args.x)) {
      rows = persistent_blocks(tiles(args.size, Planar::kTile));
      CPL_LAUNCH((backward_planar<T, A>), grid_size(rows), dim3(kPixels, kGroups), 0, stream, args,
                 static_cast<A*>(partial));
    } else {
      const int64_t blocks = persistent_blocks(tiles(args.size, ChannelsLast::kTile));
      rows = kWarps * blocks;
      CPL_LAUNCH((backward_last<T, A>), grid_size(blocks), dim3(kWarp, kWarps), 0, stream, args,
                 static_cast<A*>(partial));
    }
    const int64_t columns = 2 * args.size.channels;
    CPL_LAUNCH((reduce_rows<A>), grid_size((columns + kReduceThreads - 1) / kReduceThreads), dim3(kReduceThreads), 0,
               stream, static_cast<const A*>(partial), static_cast<A*>(args.dweight), static_cast<A*>(args.dbias), rows,
               args.size.channels);
  });
}

}  // namespace cpl::cuda
