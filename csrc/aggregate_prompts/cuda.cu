// aggregate_prompts on CUDA.
//
// Forward: a block takes a tile of one image's C * H * W results, for a few images in turn, so that the prompts'
// tile is in cache from the first to the last. Backward: a block takes a tile of one prompt, lists the pairs
// (image, place) that chose it in shared memory, in order, and walks the list; it writes the prompt's gradient once
// and leaves one partial sum for each pair, which a second kernel adds up in order. No atomics.
// The resize is a gather in both directions, from tables that a block makes for itself.
#include <cmath>
#include <string>
#include <type_traits>

#include "aggregate_prompts/math.h"
#include "aggregate_prompts/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
// Elements of a thread, all at once in its registers: a resize leaves no room for more than one.
template <bool kResize>
constexpr int kPerThread = kResize ? 1 : 4;
template <bool kResize>
constexpr int kTileBits = kResize ? 8 : 10;  // 2^kTileBits = kThreads * kPerThread
static_assert(kThreads * kPerThread<true> == 1 << kTileBits<true> &&
              kThreads * kPerThread<false> == 1 << kTileBits<false>);
constexpr int64_t kImages = 4;  // of a forward block

int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename A>
__device__ A weight_at(const void* weights, DType dtype, int64_t place) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<A>(load(static_cast<const float*>(weights) + place));
    case DType::kFloat64:
      return static_cast<A>(load(static_cast<const double*>(weights) + place));
    case DType::kBFloat16:
      return static_cast<A>(load(static_cast<const __nv_bfloat16*>(weights) + place));
    default:
      return static_cast<A>(load(static_cast<const __half*>(weights) + place));
  }
}

__device__ void store_weight(void* weights, DType dtype, int64_t place, double value) {
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float*>(weights) + place, static_cast<float>(value));
    case DType::kFloat64:
      return store(static_cast<double*>(weights) + place, value);
    case DType::kBFloat16:
      return store(static_cast<__nv_bfloat16*>(weights) + place, static_cast<float>(value));
    default:
      return store(static_cast<__half*>(weights) + place, static_cast<float>(value));
  }
}

// What a kernel is told of the sizes. Without a resize the planes of a prompt are one long row.
struct Shape {
  int64_t batch, prompts, area, source;  // area = H * W, source = S_h * S_w
  unsigned chosen, channels;
  int tile_bits;                                   // a block takes 2^tile_bits elements
  int height, width, source_height, source_width;  // of a resize only

  int64_t results() const { return static_cast<int64_t>(channels) * tiles(area); }
  int64_t planes() const { return static_cast<int64_t>(channels) * tiles(source); }
  __host__ __device__ unsigned tiles(int64_t elements) const {
    return static_cast<unsigned>((elements + (int64_t{1} << tile_bits) - 1) >> tile_bits);
  }
};

// Both axes of a resize in shared memory: rows first, then columns.
template <typename A>
struct ForwardTable {
  A* share;   // [H + W]
  int* left;  // [H + W]

  static size_t bytes(const Shape& s) { return static_cast<size_t>(s.height + s.width) * (sizeof(A) + sizeof(int)); }
  __device__ ForwardTable(void* memory, const Shape& s) {
    const int count = s.height + s.width;
    share = static_cast<A*>(memory);
    left = reinterpret_cast<int*>(share + count);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const bool row = i < s.height;
      const auto n = row ? gpu::neighbours<A>(i, s.height, s.source_height)
                         : gpu::neighbours<A>(i - s.height, s.width, s.source_width);
      share[i] = n.share;
      left[i] = n.left;
    }
    __syncthreads();
  }
  template <typename T>
  __device__ A read(const T* plane, int row, int column, const Shape& s) const {
    const int top = left[row], first = left[s.height + column];
    const int bottom = top + 1 < s.source_height ? top + 1 : top;
    const int second = first + 1 < s.source_width ? first + 1 : first;
    const A down = share[row], across = share[s.height + column];
    const T* const above = plane + top * s.source_width;
    const T* const below = plane + bottom * s.source_width;
    return (1 - down) * ((1 - across) * load(above + first) + across * load(above + second)) +
           down * ((1 - across) * load(below + first) + across * load(below + second));
  }
};

template <typename A>
struct BackwardTable {
  int taps_h, taps_w;
  A* rows;            // [S_h, taps_h]: what each output row gives back to a source row
  A* columns;         // [S_w, taps_w]
  int* first_row;     // [S_h]
  int* first_column;  // [S_w]

  static size_t bytes(const Shape& s) {
    const int64_t weights = static_cast<int64_t>(s.source_height) * gpu::touching(s.height, s.source_height) +
                            static_cast<int64_t>(s.source_width) * gpu::touching(s.width, s.source_width);
    return static_cast<size_t>(weights) * sizeof(A) +
           static_cast<size_t>(s.source_height + s.source_width) * sizeof(int);
  }
  __device__ BackwardTable(void* memory, const Shape& s)
      : taps_h(gpu::touching(s.height, s.source_height)), taps_w(gpu::touching(s.width, s.source_width)) {
    rows = static_cast<A*>(memory);
    columns = rows + s.source_height * taps_h;
    first_row = reinterpret_cast<int*>(columns + s.source_width * taps_w);
    first_column = first_row + s.source_height;
    fill(rows, first_row, taps_h, s.height, s.source_height);
    fill(columns, first_column, taps_w, s.width, s.source_width);  // the list's barriers come before any read
  }
  template <typename T>
  __device__ A read(const T* plane, int row, int column, const Shape& s) const {
    A total = 0;
    for (int i = 0; i < taps_h; ++i) {
      const A down = rows[row * taps_h + i];
      if (down == 0) continue;  // also those behind the last row
      const T* const line = plane + static_cast<int64_t>(first_row[row] + i) * s.width + first_column[column];
      A sum = 0;
      for (int j = 0; j < taps_w; ++j) {
        const A across = columns[column * taps_w + j];
        if (across != 0) sum += across * load(line + j);
      }
      total += down * sum;
    }
    return total;
  }

 private:
  static __device__ void fill(A* weights, int* first, int taps, int size, int source) {
    for (int i = static_cast<int>(threadIdx.x); i < source * taps; i += kThreads) {
      const int s = i / taps, out = gpu::first_touching(s, size, source) + i % taps;
      weights[i] = out < size ? gpu::weight_of<A>(s, out, size, source) : A(0);
      if (i % taps == 0) first[s] = out;
    }
  }
};

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

// partial: [B * k, planes]; every entry is written. Left to itself, ptxas aims for five blocks on a multiprocessor
// and spills for it; four have room.
template <typename T, typename A, bool kResize>
__global__ void __launch_bounds__(kThreads, 4) backward(AggregateBackward args, Shape s, A* partial, int64_t planes) {
  CPL_DYNAMIC_SHARED(unsigned char, memory);
  constexpr int kPer = kPerThread<kResize>;
  __shared__ int counts[kWarps];
  __shared__ int list[kThreads];  // pairs of this prompt, ascending, counted from the first of the round
  __shared__ A dots[kThreads][kWarps];
  const unsigned prompts = static_cast<unsigned>(s.prompts), tiles = s.tiles(s.source);
  const unsigned plane = blockIdx.x / prompts, prompt = blockIdx.x % prompts;
  const int64_t channel = plane / tiles, first = static_cast<int64_t>(plane % tiles) << s.tile_bits,
                pairs = s.batch * s.chosen;
  const int64_t own = (prompt * static_cast<int64_t>(s.channels) + channel) * s.source;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  A value[kPer], total[kPer];
  for (int e = 0; e < kPer; ++e) {
    const int64_t o = first + e * kThreads + threadIdx.x;
    const bool read = o < s.source && args.dweights != nullptr;
    value[e] = read ? static_cast<A>(load(static_cast<const T*>(args.prompts) + own + o)) : A(0);
    total[e] = 0;
  }
  const auto run = [&](const auto& read) {
    for (int64_t start = 0; start < pairs; start += kThreads) {
      const int64_t candidate = start + threadIdx.x;
      const int64_t index = candidate < pairs ? args.indices[candidate] : 0;
      const bool mine = candidate < pairs && index == static_cast<int64_t>(prompt);
      const unsigned votes = __ballot_sync(0xffffffffu, mine);
      if (lane == 0) counts[warp] = __popc(votes);
      __syncthreads();
      int before = 0, found = 0;
      for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? counts[w] : 0;
        found += counts[w];
      }
      if (mine) list[before + __popc(votes & ((1u << lane) - 1))] = static_cast<int>(threadIdx.x);
      __syncthreads();
      for (int i = 0; i < found; ++i) {
        const int64_t pair = start + list[i];
        const int64_t image = static_cast<unsigned>(pair) / s.chosen;
        const T* const dy = static_cast<const T*>(args.dy) + (image * s.channels + channel) * s.area;
        const A weight = weight_at<A>(args.weights, args.weights_dtype, pair);
        A dot = 0;
#pragma unroll
        for (int e = 0; e < kPer; ++e) {
          const int64_t o = first + e * kThreads + threadIdx.x;
          if (o >= s.source) continue;
          const A d = read(dy, o);
          total[e] += weight * d;
          dot += d * value[e];
        }
        dot = warp_sum(dot);
        if (lane == 0) dots[i][warp] = dot;
      }
      __syncthreads();
      if (args.dweights == nullptr) continue;
      if (static_cast<int>(threadIdx.x) < found) {
        A sum = 0;
        for (int w = 0; w < kWarps; ++w) sum += dots[threadIdx.x][w];
        partial[(start + list[threadIdx.x]) * planes + plane] = sum;
      }
      if (prompt == 0 && (index < 0 || index >= s.prompts)) {  // a pair of nobody's: someone must say so
        partial[candidate * planes + plane] = static_cast<A>(NAN);
      }
    }
  };
  if constexpr (kResize) {
    const BackwardTable<A> table(memory, s);
    run([&](const T* dy, int64_t o) {
      const int pixel = static_cast<int>(o);
      return table.read(dy, pixel / s.source_width, pixel % s.source_width, s);
    });
  } else {
    run([&](const T* dy, int64_t o) { return static_cast<A>(load(dy + o)); });
  }
  if (args.dprompts == nullptr) return;
  for (int e = 0; e < kPer; ++e) {
    const int64_t o = first + e * kThreads + threadIdx.x;
    if (o < s.source) store(static_cast<T*>(args.dprompts) + own + o, total[e]);
  }
}

// A warp a pair; in fp64, so that thousands of planes lose nothing.
template <typename A>
__global__ void __launch_bounds__(kWarp) sum_planes(const A* partial, int64_t planes, void* dweights, DType dtype) {
  const int64_t pair = blockIdx.x;
  double sum = 0;
  for (int64_t p = threadIdx.x; p < planes; p += kWarp) sum += static_cast<double>(partial[pair * planes + p]);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) store_weight(dweights, dtype, pair, sum);
}

unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument("aggregate_prompts: more than 2^31 - 1 blocks; split the batch");
  return static_cast<unsigned>(blocks);
}

template <typename Kernel>
size_t allow_shared(Kernel* kernel, size_t bytes, size_t fixed) {
  if (bytes + fixed <= 48 * 1024) return bytes;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "aggregate_prompts");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "aggregate_prompts");
  if (bytes + fixed > static_cast<size_t>(most)) {
    throw std::invalid_argument("aggregate_prompts: a resize of this size needs " + std::to_string(bytes + fixed) +
                                " bytes of shared memory and this GPU has " + std::to_string(most));
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "aggregate_prompts");
  return bytes;
}

bool resized(const AggregateSize& s) { return s.height != s.source_height || s.width != s.source_width; }

Shape shape_of(const AggregateSize& s) {
  constexpr int64_t kMaxSide = 16384;  // 2 * size * source must fit an int
  if (s.batch * s.chosen > 0x7fffffff) throw std::invalid_argument("aggregate_prompts: more than 2^31 - 1 weights");
  const auto chosen = static_cast<unsigned>(s.chosen);
  if (!resized(s)) {
    const int64_t length = s.channels * s.height * s.width;
    return {s.batch, s.prompts, length, length, chosen, 1, kTileBits<false>, 0, 0, 0, 0};
  }
  for (const int64_t side : {s.height, s.width, s.source_height, s.source_width}) {
    if (side > kMaxSide) throw std::invalid_argument("aggregate_prompts: a side of a resize is beyond 16384");
  }
  return {s.batch,
          s.prompts,
          s.height * s.width,
          s.source_height * s.source_width,
          chosen,
          static_cast<unsigned>(s.channels),
          kTileBits<true>,
          static_cast<int>(s.height),
          static_cast<int>(s.width),
          static_cast<int>(s.source_height),
          static_cast<int>(s.source_width)};
}

}  // namespace

int64_t aggregate_prompts_planes(const AggregateSize& size) { return shape_of(size).planes(); }

void aggregate_prompts_forward(const AggregateForward& args, void* stream) {
  const Shape s = shape_of(args.size);
  const int64_t blocks = s.results() * cdiv(s.batch, kImages);
  if (blocks == 0) return;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (resized(args.size)) {
      const size_t shared = allow_shared(forward<T, A, true>, ForwardTable<A>::bytes(s), 0);
      CPL_LAUNCH((forward<T, A, true>), grid_size(blocks), dim3(kThreads), shared, stream, args, s);
    } else {
      CPL_LAUNCH((forward<T, A, false>), grid_size(blocks), dim3(kThreads), 0, stream, args, s);
    }
  });
}

void aggregate_prompts_backward(const AggregateBackward& args, void* partial, void* stream) {
  const Shape s = shape_of(args.size);
  const int64_t planes = s.planes(), pairs = s.batch * s.chosen;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const unsigned grid = grid_size(planes * s.prompts);
    A* const sums = static_cast<A*>(partial);
    if (resized(args.size)) {
      constexpr size_t kFixed = sizeof(A) * kThreads * kWarps + sizeof(int) * (kThreads + kWarps);
      const size_t shared = allow_shared(backward<T, A, true>, BackwardTable<A>::bytes(s), kFixed);
      CPL_LAUNCH((backward<T, A, true>), grid, dim3(kThreads), shared, stream, args, s, sums, planes);
    } else {
      CPL_LAUNCH((backward<T, A, false>), grid, dim3(kThreads), 0, stream, args, s, sums, planes);
    }
    if (args.dweights != nullptr && pairs > 0) {
      CPL_LAUNCH((sum_planes<A>), grid_size(pairs), dim3(kWarp), 0, stream, static_cast<const A*>(sums), planes,
                 args.dweights, args.weights_dtype);
    }
  });
}

}  // namespace cpl::cuda
