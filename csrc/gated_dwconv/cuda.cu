// gated_dwconv on CUDA.
//
// A block takes a tile of one channel of one image, both planes. Forward it brings the tile and its border into shared
// memory and convolves from there. Backward the border is two pixels wide: the gradient of the convolution is formed
// over the tile and one pixel around it, stays in shared memory, and goes back through the taps. Each block leaves its
// sums of dweight and dbias, which are added in order afterwards: no atomics, the same bits every time.
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "common/launch.h"
#include "gated_dwconv/math.h"
#include "gated_dwconv/op.h"

namespace cpl::cuda {
namespace {

constexpr int kColumns = 32, kRows = 8;  // threads of a block: a warp is a run of pixels
constexpr int kTileRows = 16;            // rows of a tile: each thread has two
constexpr int kTaps = 9;
constexpr int kSums = 2 * (kTaps + 1);  // of a tile: nine taps and the bias, for both planes
constexpr int kThreads = kColumns * kRows;
constexpr int kReduceThreads = 128;

// A tile with a border of kBorder pixels; element (0, 0) is its first own pixel.
template <typename A, int kBorder>
struct Tile {
  static constexpr int kWidth = kColumns + 2 * kBorder, kHeight = kTileRows + 2 * kBorder;
  A values[kHeight][kWidth];

  __device__ A& at(int row, int column) { return values[row + kBorder][column + kBorder]; }
  __device__ const A& at(int row, int column) const { return values[row + kBorder][column + kBorder]; }
  // body(row, column) for every element, border and all, shared out among the threads.
  template <typename Body>
  static __device__ void each(const Body& body) {
    for (int n = threadIdx.y * kColumns + threadIdx.x; n < kHeight * kWidth; n += kThreads) {
      body(n / kWidth - kBorder, n % kWidth - kBorder);
    }
  }
};

struct Place {
  int64_t batch, channel, row, column;  // the tile's first pixel

  __device__ explicit Place(const GatedDwconvSize& size) {
    const int64_t across = (size.width + kColumns - 1) / kColumns, down = (size.height + kTileRows - 1) / kTileRows;
    const int64_t tile = blockIdx.x % (across * down), plane = blockIdx.x / (across * down);
    batch = plane / size.channels;
    channel = plane % size.channels;
    row = tile / across * kTileRows;
    column = tile % across * kColumns;
  }
  __device__ bool inside(const GatedDwconvSize& size, int i, int j) const {
    return row + i >= 0 && row + i < size.height && column + j >= 0 && column + j < size.width;
  }
  __device__ int64_t pixel(const GatedDwconvSize& size, int i, int j) const {
    return (row + i) * size.width + column + j;
  }
};

// Both planes of a tile; zeros outside the image.
template <typename T, typename A, int kBorder>
__device__ void read(const ImageView& x, const GatedDwconvSize& size, const Place& place, Tile<A, kBorder>& a,
                     Tile<A, kBorder>& g) {
  Tile<A, kBorder>::each([&](int i, int j) {
    const bool inside = place.inside(size, i, j);
    const int64_t pixel = inside ? place.pixel(size, i, j) : 0;
    a.at(i, j) = inside ? static_cast<A>(load(x.at<const T>(place.batch, place.channel, pixel))) : A(0);
    g.at(i, j) = inside ? static_cast<A>(load(x.at<const T>(place.batch, place.channel + size.channels, pixel))) : A(0);
  });
}

// The taps of a channel; kFlip turns them round, which is the transposed convolution.
template <bool kFlip, typename A, int kBorder>
__device__ A convolve(const Tile<A, kBorder>& tile, int i, int j, const A* taps, A sum) {
  for (int k = 0; k < kTaps; ++k) sum += taps[kFlip ? kTaps - 1 - k : k] * tile.at(i + k / 3 - 1, j + k % 3 - 1);
  return sum;
}

template <typename A>
struct Channel {
  A a_taps[kTaps];
  A g_taps[kTaps];
  A a_bias;
  A g_bias;

  __device__ Channel(const void* weight, const void* bias, int64_t channel, int64_t channels) {
    const A* const w = static_cast<const A*>(weight);
    const A* const b = static_cast<const A*>(bias);
    for (int k = 0; k < kTaps; ++k) {
      a_taps[k] = w[channel * kTaps + k];
      g_taps[k] = w[(channel + channels) * kTaps + k];
    }
    a_bias = b != nullptr ? b[channel] : A(0);
    g_bias = b != nullptr ? b[channel + channels] : A(0);
  }
};

template <bool kGelu, typename T, typename A>
__global__ void __launch_bounds__(kThreads) forward(GatedDwconvForward args) {
  __shared__ Tile<A, 1> a_tile;
  __shared__ Tile<A, 1> g_tile;
  const Place place(args.size);
  read<T>(args.x, args.size, place, a_tile, g_tile);
  __syncthreads();
  const Channel<A> channel(args.weight, args.bias, place.channel, args.size.channels);
  const int j = threadIdx.x;
  for (int i = threadIdx.y; i < kTileRows; i += kRows) {
    if (!place.inside(args.size, i, j)) continue;
    const A a = convolve<false>(a_tile, i, j, channel.a_taps, channel.a_bias);
    const A g = convolve<false>(g_tile, i, j, channel.g_taps, channel.g_bias);
    store(args.y.at<T>(place.batch, place.channel, place.pixel(args.size, i, j)), gpu::gated_value<kGelu>(a, g));
  }
}

// Adds up what each thread has of kSums sums, in a fixed tree: sums[k] for all threads of the block.
template <typename A>
__device__ void add_up(const A (&own)[kSums], A* target) {
  __shared__ A of_warps[kSums][kRows];
  for (int k = 0; k < kSums; ++k) {
    const A sum = warp_sum(own[k]);
    if (threadIdx.x == 0) of_warps[k][threadIdx.y] = sum;
  }
  __syncthreads();
  const int thread = threadIdx.y * kColumns + threadIdx.x;
  if (thread >= kSums) return;
  A sum = 0;
  for (int warp = 0; warp < kRows; ++warp) sum += of_warps[thread][warp];
  target[thread] = sum;
}

// partial: [B, C, tiles of an image, kSums].
template <bool kGelu, typename T, typename A>
__global__ void __launch_bounds__(kThreads) backward(GatedDwconvBackward args, A* partial) {
  __shared__ Tile<A, 2> a_tile;
  __shared__ Tile<A, 2> g_tile;
  __shared__ Tile<A, 1> da_tile;
  __shared__ Tile<A, 1> dg_tile;
  const GatedDwconvSize& size = args.size;
  const Place place(size);
  read<T>(args.x, size, place, a_tile, g_tile);
  __syncthreads();
  const Channel<A> channel(args.weight, args.bias, place.channel, size.channels);
  Tile<A, 1>::each([&](int i, int j) {
    gpu::GatedGradient<A> d{A(0), A(0)};
    if (place.inside(size, i, j)) {
      const A a = convolve<false>(a_tile, i, j, channel.a_taps, channel.a_bias);
      const A g = convolve<false>(g_tile, i, j, channel.g_taps, channel.g_bias);
      const A dy = load(args.dy.at<const T>(place.batch, place.channel, place.pixel(size, i, j)));
      d = gpu::gated_gradient<kGelu>(dy, a, g);
    }
    da_tile.at(i, j) = d.da;
    dg_tile.at(i, j) = d.dg;
  });
  __syncthreads();
  A sums[kSums] = {};
  const int j = threadIdx.x;
  for (int i = threadIdx.y; i < kTileRows; i += kRows) {
    if (!place.inside(size, i, j)) continue;
    const int64_t pixel = place.pixel(size, i, j);
    store(args.dx.at<T>(place.batch, place.channel, pixel), convolve<true>(da_tile, i, j, channel.a_taps, A(0)));
    store(args.dx.at<T>(place.batch, place.channel + size.channels, pixel),
          convolve<true>(dg_tile, i, j, channel.g_taps, A(0)));
    const A da = da_tile.at(i, j), dg = dg_tile.at(i, j);
    for (int k = 0; k < kTaps; ++k) {
      sums[k] += da * a_tile.at(i + k / 3 - 1, j + k % 3 - 1);
      sums[kTaps + 1 + k] += dg * g_tile.at(i + k / 3 - 1, j + k % 3 - 1);
    }
    sums[kTaps] += da;
    sums[2 * kTaps + 1] += dg;
  }
  add_up(sums, partial + static_cast<int64_t>(blockIdx.x) * kSums);
}

// One thread an entry of dweight and dbias; fp64, so that thousands of tiles lose nothing.
template <typename A>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_tiles(const A* partial, A* dweight, A* dbias, GatedDwconvSize size, int64_t tiles) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kReduceThreads + threadIdx.x;
  if (index >= size.channels * kSums) return;
  const int64_t c = index / kSums, k = index % kSums;
  double sum = 0;
  for (int64_t b = 0; b < size.batch; ++b) {
    for (int64_t t = 0; t < tiles; ++t) {
      sum += static_cast<double>(partial[((b * size.channels + c) * tiles + t) * kSums + k]);
    }
  }
  const int64_t channel = c + (k > kTaps ? size.channels : 0), tap = k % (kTaps + 1);
  (tap == kTaps ? dbias[channel] : dweight[channel * kTaps + tap]) = static_cast<A>(sum);
}

int64_t tiles_of(const GatedDwconvSize& size) {
  return (size.width + kColumns - 1) / kColumns * ((size.height + kTileRows - 1) / kTileRows);
}

unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument("gated_dwconv: more than 2^31 - 1 blocks; split the batch");
  return static_cast<unsigned>(blocks);
}

// Calls f(element pointer, std::bool_constant<gelu>).
template <typename F>
void dispatch_gated(DType dtype, bool gelu, F&& f) {
  dispatch(dtype, [&](auto* element) {
    if (gelu) {
      f(element, std::true_type());
    } else {
      f(element, std::false_type());
    }
  });
}

}  // namespace

int64_t gated_dwconv_partial(const GatedDwconvSize& size) {
  return size.batch * size.channels * tiles_of(size) * kSums;
}

void gated_dwconv_forward(const GatedDwconvForward& args, void* stream) {
  dispatch_gated(args.dtype, args.gelu, [&](auto* element, auto gelu) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    constexpr bool kGelu = decltype(gelu)::value;
    CPL_LAUNCH((forward<kGelu, T, A>), grid_size(args.size.batch * args.size.channels * tiles_of(args.size)),
               dim3(kColumns, kRows), 0, stream, args);
  });
}

void gated_dwconv_backward(const GatedDwconvBackward& args, void* partial, void* stream) {
  dispatch_gated(args.dtype, args.gelu, [&](auto* element, auto gelu) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    constexpr bool kGelu = decltype(gelu)::value;
    const int64_t tiles = tiles_of(args.size), entries = args.size.channels * kSums;
    CPL_LAUNCH((backward<kGelu, T, A>), grid_size(args.size.batch * args.size.channels * tiles), dim3(kColumns, kRows),
               0, stream, args, static_cast<A*>(partial));
    CPL_LAUNCH((reduce_tiles<A>), grid_size((entries + kReduceThreads - 1) / kReduceThreads), dim3(kReduceThreads), 0,
               stream, static_cast<const A*>(partial), static_cast<A*>(args.dweight), static_cast<A*>(args.dbias),
               args.size, tiles);
  });
}

}  // namespace cpl::cuda
