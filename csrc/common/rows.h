// How warps walk the rows of planes, for 3x3 kernels on CUDA: no shared memory, no barrier.
//
// A segment of lanes holds one row of a plane (or of a tile of its columns), kVector columns a lane, and goes down a
// strip of rows; it meets each row once and keeps what it needs of the rows above in registers. What lies beside a
// lane's columns its neighbours hand over by shuffles. Narrow planes share a warp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "common/launch.h"
#include "common/view.h"

namespace cpl::cuda {

constexpr int kWalkThreads = 64;  // few, as registers come by the block
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kTaps = 9;
constexpr int kReach = 2;               // rows beside a strip that the backward looks at
constexpr int64_t kMostRows = 1 << 20;  // of a strip

// A function of the sizes alone, so that sums have the same order every time.
struct RowWalk {
  int lanes;        // of a segment: a power of two, at most a warp
  int halo;         // lanes at each end of it whose columns belong to its neighbours
  int64_t columns;  // of a tile, without the halo
  int64_t tiles;    // beside each other
  int rows;         // of a strip
  int64_t strips;   // below each other
  int64_t planes;

  int64_t segments() const { return planes * parts(); }
  CPL_HD int64_t parts() const { return tiles * strips; }  // of a plane
  unsigned blocks() const {
    const int64_t warps = (segments() * lanes + 31) / 32, count = (warps * 32 + kWalkThreads - 1) / kWalkThreads;
    if (count > 0x7fffffff) throw std::invalid_argument("more than 2^31 - 1 blocks; split the batch");
    return static_cast<unsigned>(count);
  }
};

constexpr int64_t kMultiprocessors = 132;

// halo: as above, if a row takes more than one tile. least_rows: of a strip; each strip walks a few rows more. warps:
// wanted, so that enough bytes are on their way.
inline RowWalk walk_rows(int64_t planes, int64_t height, int64_t width, int vector, int halo, int64_t least_rows,
                         int64_t warps_wanted) {
  const int64_t lanes = (width + vector - 1) / vector;
  RowWalk walk{32, 0, 32 * vector, 1, 1, 1, planes};
  if (lanes <= 32) {
    walk.lanes = 1;
    while (walk.lanes < lanes) walk.lanes *= 2;
    walk.columns = static_cast<int64_t>(walk.lanes) * vector;
  } else {
    walk.halo = halo;
    walk.columns = static_cast<int64_t>(32 - 2 * halo) * vector;
    walk.tiles = (width + walk.columns - 1) / walk.columns;
  }
  const int64_t warps = std::max<int64_t>(1, walk.segments() * walk.lanes / 32);
  const int64_t most = std::max<int64_t>(1, height / least_rows);
  const int64_t strips = std::min(most, (warps_wanted + warps - 1) / warps);
  const int64_t rows = std::max<int64_t>(1, (height + strips - 1) / strips);
  walk.rows = static_cast<int>(std::min<int64_t>(rows, kMostRows));
  walk.strips = (height + walk.rows - 1) / walk.rows;
  return walk;
}

// Where a lane is.
template <int kVector>
struct Segment {
  int64_t plane, part;  // part: which tile and strip of the plane
  int64_t column;       // the lane's first
  int64_t first;        // row of the strip
  int rows;             // of it
  int above, below;     // rows of the image above and below it, as far as the walk looks
  bool exists;          // there may be more lanes than segments need
  bool real;            // its columns lie in the image
  bool own;             // and are the tile's
  int lanes, lane;
  int64_t width;  // of the image

  // Whether there are columns beside a tile whose ends read one more.
  __device__ bool has_left() const { return real && lane == 0 && column > 0; }
  __device__ bool has_right() const { return real && lane == lanes - 1 && column + kVector < width; }

  // Of the lane's columns `row` rows below the strip's first (above it, if negative); to be read only if it is there.
  __device__ int64_t offset(int row) const { return (first + row) * width + column; }

  __device__ Segment(const RowWalk& walk, int64_t height, int64_t width_) : width(width_) {
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * kWalkThreads + threadIdx.x;
    const int64_t segment = thread / walk.lanes;
    lanes = walk.lanes;
    lane = static_cast<int>(thread % walk.lanes);
    exists = segment < walk.planes * walk.parts();
    plane = exists ? segment / walk.parts() : 0;
    part = exists ? segment % walk.parts() : 0;
    const int64_t start = part / walk.strips * walk.columns;
    column = start + (lane - walk.halo) * kVector;
    first = part % walk.strips * walk.rows;
    const int64_t left = height - first;
    rows = static_cast<int>(left < walk.rows ? left : walk.rows);
    above = static_cast<int>(first < kReach ? first : kReach);
    below = static_cast<int>(left - rows < kReach ? left - rows : kReach);
    real = exists && column >= 0 && column < width;
    own = real && column >= start && column < start + walk.columns;
  }
};

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Pack {
  T values[kVector];
};

// One access, also where the compiler would rather make one an element.
template <typename T, int kVector>
__device__ void store_pack(T* to, const Pack<T, kVector>& pack) {
#if !defined(CPL_CUDA_HOST)
  using Word = std::conditional_t<sizeof pack == 16, uint4, uint2>;
  if constexpr (sizeof pack == sizeof(Word)) {
    __stwb(reinterpret_cast<Word*>(to), *reinterpret_cast<const Word*>(&pack));
    return;
  }
#endif
  *reinterpret_cast<Pack<T, kVector>*>(to) = pack;
}

// What a lane has read of a row: its own columns, and at the ends of a tile the ones beside it.
template <typename T, int kVector>
struct Row {
  Pack<T, kVector> pack;
  T left, right;

  __device__ void read(const T* from, bool inside, bool has_left, bool has_right) {
    pack = {};
    left = right = T{};
    if (!inside) return;
    pack = *reinterpret_cast<const Pack<T, kVector>*>(from);
    if (has_left) left = from[-1];
    if (has_right) right = from[kVector];
  }
};

// The rows of a plane as they come, zeros where there is none, kWaiting of them asked for before they are needed.
template <typename T, int kVector, int kWaiting, bool kBeside = false>
class Rows {
 public:
  // first: the first row, counted from the strip's first.
  __device__ Rows(const T* plane, const Segment<kVector>& at, int first)
      : next_(plane + at.offset(first)), row_(first) {
    for (int i = 0; i < kWaiting; ++i) fetch(waiting_[i], at);
  }
  __device__ Row<T, kVector> take(const Segment<kVector>& at) {
    const Row<T, kVector> row = waiting_[0];
    for (int i = 1; i < kWaiting; ++i) waiting_[i - 1] = waiting_[i];
    fetch(waiting_[kWaiting - 1], at);
    return row;
  }

 private:
  __device__ void fetch(Row<T, kVector>& row, const Segment<kVector>& at) {
    const bool inside = at.real && row_ >= -at.above && row_ < at.rows + at.below;
    row.read(next_, inside, kBeside && at.has_left(), kBeside && at.has_right());
    next_ += at.width;
    ++row_;
  }
  const T* next_;
  int row_;
  Row<T, kVector> waiting_[kWaiting];
};

// Rows asked for ahead: 16-bit ones are half as many bytes, and as long on their way.
template <typename T>
constexpr int kAhead = sizeof(T) == 2 ? 2 : 1;

template <typename A, typename T, int kVector>
__device__ void write_pack(T* to, const A (&values)[kVector]) {
  Pack<T, kVector> pack;
  for (int i = 0; i < kVector; ++i) store(pack.values + i, values[i]);
  store_pack(to, pack);
}

// A row with the columns left and right of the lane's own, from its neighbours; at the segment's ends `left` and
// `right`.
template <typename A, int kVector>
__device__ void with_neighbours(const A (&own)[kVector], int lane, int lanes, A (&row)[kVector + 2], A left = A(0),
                                A right = A(0)) {
  const A from_left = __shfl_up_sync(kAllLanes, own[kVector - 1], 1, lanes);
  const A from_right = __shfl_down_sync(kAllLanes, own[0], 1, lanes);
  row[0] = lane == 0 ? left : from_left;
  row[kVector + 1] = lane == lanes - 1 ? right : from_right;
  for (int i = 0; i < kVector; ++i) row[i + 1] = own[i];
}
template <typename T, typename A, int kVector>
__device__ void with_neighbours(const Row<T, kVector>& read, int lane, int lanes, A (&row)[kVector + 2]) {
  A own[kVector];
  for (int i = 0; i < kVector; ++i) own[i] = load(read.pack.values + i);
  with_neighbours(own, lane, lanes, row, static_cast<A>(load(&read.left)), static_cast<A>(load(&read.right)));
}

// sums += three taps of one row of the filter * row.
template <typename A, int kVector>
__device__ void add_taps(A (&sums)[kVector], const A (&row)[kVector + 2], A left, A middle, A right) {
  for (int i = 0; i < kVector; ++i) {  // one after the other: a fused multiplication and addition each
    sums[i] += left * row[i];
    sums[i] += middle * row[i + 1];
    sums[i] += right * row[i + 2];
  }
}

// The convolution as the rows come: with the row that is new, the one above it is done.
template <typename A, int kVector>
struct Convolution {
  A taps[kTaps];
  A bias;
  A done[kVector], open[kVector];  // of the row above the new one; of the new one, from the rows up to it

  __device__ Convolution(const void* weight, const void* bias_or_null, int64_t channel) : done{}, open{} {
    for (int k = 0; k < kTaps; ++k) taps[k] = static_cast<const A*>(weight)[channel * kTaps + k];
    bias = bias_or_null != nullptr ? static_cast<const A*>(bias_or_null)[channel] : A(0);
  }
  __device__ void take(const A (&row)[kVector + 2]) {
    A next[kVector];
    for (int i = 0; i < kVector; ++i) {
      done[i] = open[i];
      open[i] = next_[i];
      next[i] = bias;
    }
    add_taps(done, row, taps[6], taps[7], taps[8]);
    add_taps(open, row, taps[3], taps[4], taps[5]);
    add_taps(next, row, taps[0], taps[1], taps[2]);
    for (int i = 0; i < kVector; ++i) next_[i] = next[i];
  }

 private:
  A next_[kVector] = {};
};

// Backward: from a gradient's rows, as they come, the gradient by the input (the taps turned round), and the sums for
// the taps and the bias.
template <typename A, int kVector>
struct Transposed {
  A done[kVector];    // the gradient by the input, of the row above the new one
  A sums[kTaps + 1];  // taps, then bias

  __device__ Transposed() : done{}, sums{} {}
  __device__ void take(const A (&row)[kVector + 2], const A* taps) {
    A next[kVector];
    for (int i = 0; i < kVector; ++i) {
      done[i] = open_[i];
      open_[i] = next_[i];
      next[i] = A(0);
    }
    // A gradient at (r, j) has read (r + k - 1, j + l - 1) by tap (k, l).
    add_taps(done, row, taps[2], taps[1], taps[0]);
    add_taps(open_, row, taps[5], taps[4], taps[3]);
    add_taps(next, row, taps[8], taps[7], taps[6]);
    for (int i = 0; i < kVector; ++i) next_[i] = next[i];
  }
  // To the sums of the taps of one row of the filter: x is the row that it has read of, in the lane's columns, and
  // `row` the gradient.
  template <int kFilterRow>
  __device__ void add_row(const A (&row)[kVector + 2], const A (&x)[kVector]) {
    for (int i = 0; i < kVector; ++i) {
      // Tap l was read by the gradient 1 - l columns on.
      for (int l = 0; l < 3; ++l) sums[3 * kFilterRow + l] += row[i + 2 - l] * x[i];
    }
  }
  __device__ void add_bias(const A (&row)[kVector + 2]) {
    for (int i = 0; i < kVector; ++i) sums[kTaps] += row[i + 1];
  }
  // Adds up over the segment; partial: [2 or 1 planes' channels, kTaps + 1, entries].
  __device__ void leave(A* partial, int64_t channel, int64_t entries, int64_t entry, int lanes, bool writes) {
    for (int k = 0; k <= kTaps; ++k) {
      A sum = sums[k];
      for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (writes) partial[(channel * (kTaps + 1) + k) * entries + entry] = sum;
    }
  }

 private:
  A open_[kVector] = {}, next_[kVector] = {};
};

// One warp an entry of dweight or dbias; fp64, so that thousands of strips lose nothing. kCount: taps of a filter.
template <int kCount, typename A>
__global__ void __launch_bounds__(kWalkThreads)
    reduce_strips(const A* partial, A* dweight, A* dbias, int64_t channels, int64_t entries) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kWalkThreads + threadIdx.x) / 32;
  if (row >= channels * (kCount + 1)) return;  // whole warps
  double sum = 0;
  for (int64_t e = threadIdx.x % 32; e < entries; e += 32) sum += static_cast<double>(partial[row * entries + e]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 != 0) return;
  const int64_t channel = row / (kCount + 1), tap = row % (kCount + 1);
  (tap == kCount ? dbias[channel] : dweight[channel * kCount + tap]) = static_cast<A>(sum);
}

template <int kCount = kTaps, typename A>
void launch_reduce_strips(const A* partial, void* dweight, void* dbias, int64_t channels, int64_t entries,
                          void* stream) {
  const int64_t blocks = (channels * (kCount + 1) * 32 + kWalkThreads - 1) / kWalkThreads;
  CPL_LAUNCH((reduce_strips<kCount, A>), static_cast<unsigned>(blocks), dim3(kWalkThreads), 0, stream, partial,
             static_cast<A*>(dweight), static_cast<A*>(dbias), channels, entries);
}

constexpr int kPackColumns = 4;  // of a lane, where rows can be read so many elements at a time

template <typename T>
bool reads_packs(const ImageView& x, int64_t width) {
  const auto whole = [](int64_t n) { return n % kPackColumns == 0; };
  return whole(width) && whole(x.stride_batch) && whole(x.stride_channel) &&
         reinterpret_cast<uintptr_t>(x.data) % (sizeof(T) * kPackColumns) == 0;
}

// Calls f(std::integral_constant<columns of a lane>), as the images allow; fp64 has registers for one.
template <typename T, typename F>
void dispatch_columns(std::initializer_list<const ImageView*> images, int64_t width, F&& f) {
  if constexpr (!std::is_same_v<T, double>) {
    const auto packs = [&](const ImageView* x) { return reads_packs<T>(*x, width); };
    if (std::all_of(images.begin(), images.end(), packs)) return f(std::integral_constant<int, kPackColumns>());
  }
  f(std::integral_constant<int, 1>());
}

}  // namespace cpl::cuda
