// feature_distances on CUDA.
//
// Forward: a block takes a tile of the anchor and walks the K others past it, four at a time; it leaves one partial
// sum for each, and a second kernel adds them up in order. Backward without a norm: the same tiles, every element for
// itself. With a norm the inverse norms of all channel vectors are made first; in the backward a team of threads
// takes a vector: across rows (planar) the threads of a block that share a pixel, along the run a warp.
// No atomics, the same bits every time.
#include <type_traits>

#include "common/launch.h"
#include "feature_distances/math.h"
#include "feature_distances/op.h"

namespace cpl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kTileElements = 4096;  // sixteen for each thread
constexpr int kFused = 4;                // others whose sums a thread holds
constexpr int kPixels = 64;              // two warps side by side: 256-byte rows of fp32
constexpr int kGroups = kThreads / kPixels;

// Tiles of rows by elements of a run: whole rows where they are short, parts of one where they are long.
struct Tiles {
  int64_t rows;
  int64_t count;
  int64_t across;
  int64_t per_image;

  explicit Tiles(const DistancesSize& size)
      : rows(size.run < kTileElements ? kTileElements / size.run : 1),
        count(size.run < kTileElements ? size.run : kTileElements),
        across((size.run + count - 1) / count),
        per_image(across * ((size.rows + rows - 1) / rows)) {}
};

struct Tile {
  int64_t batch;
  int64_t row;
  int64_t first;
  unsigned count;
  unsigned elements;
};

__device__ Tile tile_of_block(const Tiles& tiles, const DistancesSize& size) {
  const int64_t within = blockIdx.x % tiles.per_image;
  const int64_t row = within / tiles.across * tiles.rows, first = within % tiles.across * tiles.count;
  const int64_t rows = size.rows - row < tiles.rows ? size.rows - row : tiles.rows;
  const int64_t count = size.run - first < tiles.count ? size.run - first : tiles.count;
  return {blockIdx.x / tiles.per_image, row, first, static_cast<unsigned>(count), static_cast<unsigned>(rows * count)};
}

template <typename T>
__device__ const T* image(const Anchor& anchor, int64_t batch) {
  return static_cast<const T*>(anchor.data) + batch * anchor.stride_batch;
}
template <typename T>
__device__ const T* image(const Others& others, int64_t k, int64_t batch) {
  return static_cast<const T*>(others.data) + k * others.stride_negative + batch * others.stride_batch;
}
template <typename T>
__device__ T* result(void* data, const DistancesSize& size, int64_t k, int64_t batch) {
  return static_cast<T*>(data) + (k * size.batch + batch) * size.rows * size.run;
}
template <typename A>
__device__ A scale_of(const DistancesBackward& args, int64_t k, int64_t batch) {
  return static_cast<const A*>(args.dy)[k * args.size.batch + batch] / static_cast<A>(args.size.rows * args.size.run);
}

// How a channel vector lies in [rows, run], and the team of threads that takes one.
struct Across {
  static constexpr int64_t kVectors = kPixels;  // of a block
  static dim3 block() { return dim3(kPixels, kGroups); }
  CPL_HD static int64_t channels(const DistancesSize& size) { return size.rows; }
  CPL_HD static int64_t vectors(const DistancesSize& size) { return size.run; }
  CPL_HD static int64_t offset(int64_t channel, int64_t vector, int64_t stride_row) {
    return channel * stride_row + vector;
  }
  __device__ static int64_t vector() { return threadIdx.x; }
  __device__ static int64_t member() { return threadIdx.y; }
  static constexpr int kMembers = kGroups;

  // Of all threads of a block at once; every member gets its team's.
  template <typename A>
  __device__ static A sum(A value, A (*shared)[kPixels]) {
    __syncthreads();  // whoever still reads the last sum must be done
    shared[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    A total = 0;
    for (int g = 0; g < kGroups; ++g) total += shared[g][threadIdx.x];
    return total;
  }
};

struct Along {
  static constexpr int64_t kVectors = kWarps;
  static dim3 block() { return dim3(kWarp, kWarps); }
  CPL_HD static int64_t channels(const DistancesSize& size) { return size.run; }
  CPL_HD static int64_t vectors(const DistancesSize& size) { return size.rows; }
  CPL_HD static int64_t offset(int64_t channel, int64_t vector, int64_t stride_row) {
    return vector * stride_row + channel;
  }
  __device__ static int64_t vector() { return threadIdx.y; }
  __device__ static int64_t member() { return threadIdx.x; }
  static constexpr int kMembers = kWarp;

  template <typename A>
  __device__ static A sum(A value, A (*)[kPixels]) {
    return warp_sum(value);
  }
};

// norms [1 + K, B, vectors]: of the anchor, then of the others.
template <typename A>
__device__ const A* norms_of(const A* norms, const DistancesSize& size, int64_t vectors, int64_t which, int64_t batch) {
  return norms + (which * size.batch + batch) * vectors;
}

// A block's vectors are those of one image of the anchor (which = 0) or of others (which = 1 + k).
template <typename Layout, typename T, typename A>
__global__ void __launch_bounds__(kThreads) inverse_norms(Anchor anchor, Others others, DistancesSize size, A* norms) {
  __shared__ A shared[kGroups][kPixels];
  const int64_t vectors = Layout::vectors(size), blocks = (vectors + Layout::kVectors - 1) / Layout::kVectors;
  const int64_t which = blockIdx.x / blocks / size.batch, batch = blockIdx.x / blocks % size.batch;
  const int64_t vector = blockIdx.x % blocks * Layout::kVectors + Layout::vector();
  const T* x = which == 0 ? image<T>(anchor, batch) : image<T>(others, which - 1, batch);
  const int64_t stride = which == 0 ? anchor.stride_row : others.stride_row;
  const int64_t channels = vector < vectors ? Layout::channels(size) : 0;  // the others still take part in the sums
  A square = 0;
  for (int64_t c = Layout::member(); c < channels; c += Layout::kMembers) {
    const A value = load(x + Layout::offset(c, vector, stride));
    square += value * value;
  }
  square = Layout::sum(square, shared);
  if (vector < vectors && Layout::member() == 0) {
    norms[(which * size.batch + batch) * vectors + vector] = gpu::inverse_norm(square);
  }
}

// partial: [K, B, tiles of an image]
template <int kPower, Norm kNorm, typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    forward_tile(DistancesForward args, Tiles tiles, const A* norms, A* partial) {
  __shared__ A shared[kFused][kWarps];
  const DistancesSize& size = args.size;
  const Tile tile = tile_of_block(tiles, size);
  const int64_t vectors = kNorm == Norm::kAcrossRows ? size.run : size.rows;
  const T* a = image<T>(args.anchor, tile.batch);
  for (int64_t k = 0; k < size.negatives; k += kFused) {
    A sums[kFused] = {};
    for (unsigned t = threadIdx.x; t < tile.elements; t += kThreads) {
      const int64_t row = tile.row + t / tile.count, column = tile.first + t % tile.count;
      const int64_t vector = kNorm == Norm::kAcrossRows ? column : row;
      A x = load(a + row * args.anchor.stride_row + column);
      if (kNorm != Norm::kNone) x *= norms_of(norms, size, vectors, 0, tile.batch)[vector];
      for (int i = 0; i < kFused; ++i) {
        if (k + i >= size.negatives) break;
        A y = load(image<T>(args.others, k + i, tile.batch) + row * args.others.stride_row + column);
        if (kNorm != Norm::kNone) y *= norms_of(norms, size, vectors, 1 + k + i, tile.batch)[vector];
        sums[i] += gpu::distance_term<kPower>(x - y);
      }
    }
    for (int i = 0; i < kFused; ++i) {
      const A sum = warp_sum(sums[i]);
      if (threadIdx.x % kWarp == 0) shared[i][threadIdx.x / kWarp] = sum;
    }
    __syncthreads();
    if (threadIdx.x < kFused && k + threadIdx.x < size.negatives) {
      A sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared[threadIdx.x][w];
      partial[((k + threadIdx.x) * size.batch + tile.batch) * tiles.per_image + blockIdx.x % tiles.per_image] = sum;
    }
    __syncthreads();  // before the next four overwrite shared
  }
}

// A warp a distance; fp64, so that thousands of tiles lose nothing.
template <typename A>
__global__ void __launch_bounds__(kThreads) add_up(DistancesForward args, int64_t per_image, const A* partial) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (place >= args.size.negatives * args.size.batch) return;  // a whole warp leaves: no barrier follows
  double sum = 0;
  for (int64_t i = threadIdx.x; i < per_image; i += kWarp) sum += static_cast<double>(partial[place * per_image + i]);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) {
    static_cast<A*>(args.distances)[place] = static_cast<A>(sum / static_cast<double>(args.size.rows * args.size.run));
  }
}

template <int kPower, typename T, typename A>
__global__ void __launch_bounds__(kThreads) backward_tile(DistancesBackward args, Tiles tiles) {
  const DistancesSize& size = args.size;
  const Tile tile = tile_of_block(tiles, size);
  for (unsigned t = threadIdx.x; t < tile.elements; t += kThreads) {
    const int64_t row = tile.row + t / tile.count, column = tile.first + t % tile.count;
    const int64_t to = row * size.run + column;
    const A x = load(image<T>(args.anchor, tile.batch) + row * args.anchor.stride_row + column);
    A gradient = 0;
    for (int64_t k = 0; k < size.negatives; ++k) {
      const A y = load(image<T>(args.others, k, tile.batch) + row * args.others.stride_row + column);
      const A slope = gpu::distance_slope<kPower>(x - y, scale_of<A>(args, k, tile.batch));
      gradient += slope;
      if (args.dothers != nullptr) store(result<T>(args.dothers, size, k, tile.batch) + to, -slope);
    }
    if (args.danchor != nullptr) store(result<T>(args.danchor, size, 0, tile.batch) + to, gradient);
  }
}

// One vector of a backward with a norm.
template <typename Layout, int kPower, typename T, typename A>
struct Vector {
  const DistancesBackward& args;
  const A* norms;
  int64_t batch;
  int64_t vector;
  int64_t vectors;

  __device__ A anchor(int64_t c) const {
    return load(image<T>(args.anchor, batch) + Layout::offset(c, vector, args.anchor.stride_row)) *
           norms_of(norms, args.size, vectors, 0, batch)[vector];
  }
  __device__ A other(int64_t k, int64_t c) const {
    return load(image<T>(args.others, k, batch) + Layout::offset(c, vector, args.others.stride_row)) *
           norms_of(norms, args.size, vectors, 1 + k, batch)[vector];
  }
  // d of the distances by the normalised anchor, through the k-th.
  __device__ A slope(int64_t k, int64_t c) const {
    return gpu::distance_slope<kPower>(anchor(c) - other(k, c), scale_of<A>(args, k, batch));
  }
  __device__ A slopes(int64_t c) const {
    A sum = 0;
    for (int64_t k = 0; k < args.size.negatives; ++k) sum += slope(k, c);
    return sum;
  }
};

// Two blocks a multiprocessor are enough: left to itself ptxas aims for four, and spills for it (sm_100).
template <typename Layout, int kPower, typename T, typename A>
__global__ void __launch_bounds__(kThreads, 2) backward_vectors(DistancesBackward args, const A* norms) {
  __shared__ A shared[kGroups][kPixels];
  const DistancesSize& size = args.size;
  const int64_t vectors = Layout::vectors(size), blocks = (vectors + Layout::kVectors - 1) / Layout::kVectors;
  const int64_t vector = blockIdx.x % blocks * Layout::kVectors + Layout::vector();
  const Vector<Layout, kPower, T, A> at{args, norms, blockIdx.x / blocks, vector, vectors};
  const int64_t channels = vector < vectors ? Layout::channels(size) : 0;  // the others still take part in the sums
  for (int64_t k = 0; k < size.negatives && args.dothers != nullptr; ++k) {
    A dot = 0;
    for (int64_t c = Layout::member(); c < channels; c += Layout::kMembers) dot -= at.other(k, c) * at.slope(k, c);
    dot = Layout::sum(dot, shared);
    for (int64_t c = Layout::member(); c < channels; c += Layout::kMembers) {
      const A gradient = -at.slope(k, c) - at.other(k, c) * dot;
      store(result<T>(args.dothers, size, k, at.batch) + Layout::offset(c, vector, size.run),
            gradient * norms_of(norms, size, vectors, 1 + k, at.batch)[vector]);
    }
  }
  if (args.danchor == nullptr) return;
  A dot = 0;
  for (int64_t c = Layout::member(); c < channels; c += Layout::kMembers) dot += at.anchor(c) * at.slopes(c);
  dot = Layout::sum(dot, shared);
  for (int64_t c = Layout::member(); c < channels; c += Layout::kMembers) {
    const A gradient = at.slopes(c) - at.anchor(c) * dot;
    store(result<T>(args.danchor, size, 0, at.batch) + Layout::offset(c, vector, size.run),
          gradient * norms_of(norms, size, vectors, 0, at.batch)[vector]);
  }
}

unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument("feature_distances: more than 2^31 - 1 blocks; split the batch");
  return static_cast<unsigned>(blocks);
}

int64_t norm_count(const DistancesSize& size, Norm norm) {
  if (norm == Norm::kNone) return 0;
  return (1 + size.negatives) * size.batch * (norm == Norm::kAcrossRows ? size.run : size.rows);
}

template <typename Layout>
int64_t blocks_of_image(const DistancesSize& size) {
  return (Layout::vectors(size) + Layout::kVectors - 1) / Layout::kVectors;
}

template <typename T, typename A, typename Args>
void make_norms(const Args& args, A* norms, void* stream) {
  const DistancesSize& size = args.size;
  const int64_t images = (1 + size.negatives) * size.batch;
  if (args.norm == Norm::kAcrossRows) {
    CPL_LAUNCH((inverse_norms<Across, T, A>), grid_size(images * blocks_of_image<Across>(size)), Across::block(), 0,
               stream, args.anchor, args.others, size, norms);
  } else if (args.norm == Norm::kAlongRun) {
    CPL_LAUNCH((inverse_norms<Along, T, A>), grid_size(images * blocks_of_image<Along>(size)), Along::block(), 0,
               stream, args.anchor, args.others, size, norms);
  }
}

// f(power as a constant, a null pointer of the element type)
template <typename Args, typename F>
void choose(const Args& args, const F& f) {
  dispatch(args.dtype, [&](auto* element) {
    if (args.power == 1) return f(std::integral_constant<int, 1>(), element);
    f(std::integral_constant<int, 2>(), element);
  });
}

}  // namespace

int64_t feature_distances_scratch(const DistancesSize& size, Norm norm) {
  return norm_count(size, norm) + size.negatives * size.batch * Tiles(size).per_image;
}

void feature_distances_forward(const DistancesForward& args, void* scratch, void* stream) {
  choose(args, [&](auto power, auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    constexpr int kPower = decltype(power)::value;
    A* const norms = static_cast<A*>(scratch);
    A* const partial = norms + norm_count(args.size, args.norm);
    make_norms<T>(args, norms, stream);
    const Tiles tiles(args.size);
    const unsigned grid = grid_size(args.size.batch * tiles.per_image);
    const A* const known = norms;
    if (args.norm == Norm::kNone) {
      CPL_LAUNCH((forward_tile<kPower, Norm::kNone, T, A>), grid, dim3(kThreads), 0, stream, args, tiles, known,
                 partial);
    } else if (args.norm == Norm::kAcrossRows) {
      CPL_LAUNCH((forward_tile<kPower, Norm::kAcrossRows, T, A>), grid, dim3(kThreads), 0, stream, args, tiles, known,
                 partial);
    } else {
      CPL_LAUNCH((forward_tile<kPower, Norm::kAlongRun, T, A>), grid, dim3(kThreads), 0, stream, args, tiles, known,
                 partial);
    }
    const A* const sums = partial;
    CPL_LAUNCH((add_up<A>), grid_size((args.size.negatives * args.size.batch + kWarps - 1) / kWarps),
               dim3(kWarp, kWarps), 0, stream, args, tiles.per_image, sums);
  });
}

void feature_distances_backward(const DistancesBackward& args, void* scratch, void* stream) {
  choose(args, [&](auto power, auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    constexpr int kPower = decltype(power)::value;
    A* const norms = static_cast<A*>(scratch);
    make_norms<T>(args, norms, stream);
    const A* const known = norms;
    if (args.norm == Norm::kNone) {
      const Tiles tiles(args.size);
      CPL_LAUNCH((backward_tile<kPower, T, A>), grid_size(args.size.batch * tiles.per_image), dim3(kThreads), 0, stream,
                 args, tiles);
    } else if (args.norm == Norm::kAcrossRows) {
      CPL_LAUNCH((backward_vectors<Across, kPower, T, A>),
                 grid_size(args.size.batch * blocks_of_image<Across>(args.size)), Across::block(), 0, stream, args,
                 known);
    } else {
      CPL_LAUNCH((backward_vectors<Along, kPower, T, A>),
                 grid_size(args.size.batch * blocks_of_image<Along>(args.size)), Along::block(), 0, stream, args,
                 known);
    }
  });
}

}  // namespace cpl::cuda
