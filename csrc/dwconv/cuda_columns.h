// 5x5 and 7x7 on CUDA: a lane a column, walking down (common/rows.h). What it needs of the columns beside its own it
// reads, from the first cache: k loads a row for k * k multiplications. The backward takes two kernels, so that the
// filter and its sums need not be in registers at once.
#pragma once

#include <cstdint>

#include "common/rows.h"
#include "dwconv/op.h"

namespace cpl::cuda {
namespace {

constexpr int64_t kColumnRows = 16;  // of a strip at least: k - 1 more are read twice

// The columns from `kSize / 2` before a lane's own to as many behind it, of the rows of a plane as they come; zeros
// where there is none.
template <typename T, typename A, int kSize>
class Windows {
 public:
  __device__ Windows(const T* plane, const Segment<1>& at, int64_t height, int64_t first)
      : next_(plane + first * at.width + at.column - kSize / 2), row_(first), height_(height) {
    for (int j = 0; j < kSize; ++j) {
      const int64_t column = at.column + j - kSize / 2;
      there_[j] = at.real && column >= 0 && column < at.width;
    }
  }
  __device__ void take(int64_t width, A (&row)[kSize]) {
    const bool inside = row_ >= 0 && row_ < height_;
#pragma unroll
    for (int j = 0; j < kSize; ++j) row[j] = inside && there_[j] ? static_cast<A>(load(next_ + j)) : A(0);
    next_ += width;
    ++row_;
  }

 private:
  const T* next_;
  int64_t row_, height_;
  bool there_[kSize];
};

// y = x convolved with the filter, or with the filter turned round: then x is dy and y is dx.
template <bool kFlip, typename T, typename A, int kSize>
__global__ void __launch_bounds__(kWalkThreads)
    convolve(ImageView x, ImageView y, const A* weight, const A* bias_or_null, DwconvSize size, RowWalk walk) {
  constexpr int kBorder = kSize / 2, kCount = kSize * kSize;
  const Segment<1> at(walk, size.height, size.width);
  const int64_t batch = at.plane / size.channels, channel = at.plane % size.channels;
  A taps[kSize][kSize];
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    taps[k / kSize][k % kSize] = weight[channel * kCount + (kFlip ? kCount - 1 - k : k)];
  }
  const A bias = bias_or_null != nullptr ? bias_or_null[channel] : A(0);
  Windows<T, A, kSize> windows(x.at<const T>(batch, channel, 0), at, size.height, at.first - kBorder);
  T* target = y.at<T>(batch, channel, 0) + at.offset(1 - kSize);  // a row is complete kBorder rows below it
  A open[kSize];                                                  // open[i]: the row that the new one is row i of
#pragma unroll
  for (int i = 0; i < kSize; ++i) open[i] = bias;
  for (int n = 0; n < walk.rows + kSize - 1; ++n) {
    A row[kSize];
    windows.take(size.width, row);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) open[i] += taps[i][j] * row[j];
    }
    if (at.own && n >= kSize - 1 && n - (kSize - 1) < at.rows) store(target, open[kSize - 1]);
    target += size.width;
#pragma unroll
    for (int i = kSize - 1; i > 0; --i) open[i] = open[i - 1];
    open[0] = bias;
  }
}

// partial: [C, kSize * kSize + 1, entries], an entry for each strip of each image: of the strip's rows of x the
// products with dy, and the sum of dy.
template <typename T, typename A, int kSize>
__global__ void __launch_bounds__(kWalkThreads, sizeof(A) == 8 ? 5 : 8)
    sum_taps(DwconvBackward args, RowWalk walk, A* partial) {
  constexpr int kBorder = kSize / 2, kCount = kSize * kSize;
  const DwconvSize& size = args.size;
  const Segment<1> at(walk, size.height, size.width);
  const int64_t batch = at.plane / size.channels, channel = at.plane % size.channels;
  Windows<T, A, kSize> windows(args.dy.at<const T>(batch, channel, 0), at, size.height, at.first - kBorder);
  const T* source = args.x.at<const T>(batch, channel, 0) + at.offset(0);
  A sums[kSize][kSize] = {}, bias = A(0);
  A x[kSize] = {};  // x[i]: of the row that has read the new row of dy's by row i of the filter
  for (int n = 0; n < walk.rows + kSize - 1; ++n) {
#pragma unroll
    for (int i = 0; i + 1 < kSize; ++i) x[i] = x[i + 1];
    x[kSize - 1] = at.own && n < at.rows ? static_cast<A>(load(source)) : A(0);
    source += size.width;
    A row[kSize];
    windows.take(size.width, row);
    if (at.own && n >= kBorder && n - kBorder < at.rows) bias += row[kBorder];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) sums[i][j] += x[i] * row[kSize - 1 - j];
    }
  }
  const int64_t entries = size.batch * walk.parts(), entry = batch * walk.parts() + at.part;
#pragma unroll
  for (int k = 0; k <= kCount; ++k) {
    A sum = k < kCount ? sums[k / kSize % kSize][k % kSize] : bias;
    for (int step = at.lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (at.exists && at.lane == 0) partial[(channel * (kCount + 1) + k) * entries + entry] = sum;
  }
}

inline RowWalk column_walk(const DwconvSize& size, int64_t warps) {
  return walk_rows(size.batch * size.channels, size.height, size.width, 1, 0, kColumnRows, warps);
}

template <int kSize, typename T>
void forward_columns(const DwconvForward& args, int64_t warps, void* stream) {
  using A = typename Arithmetic<T>::type;
  const RowWalk walk = column_walk(args.size, warps);
  CPL_LAUNCH((convolve<false, T, A, kSize>), walk.blocks(), dim3(kWalkThreads), 0, stream, args.x, args.y,
             static_cast<const A*>(args.weight), static_cast<const A*>(args.bias), args.size, walk);
}

template <int kSize, typename T>
void backward_columns(const DwconvBackward& args, void* partial, int64_t warps, void* stream) {
  using A = typename Arithmetic<T>::type;
  const RowWalk walk = column_walk(args.size, warps);
  CPL_LAUNCH((convolve<true, T, A, kSize>), walk.blocks(), dim3(kWalkThreads), 0, stream, args.dy, args.dx,
             static_cast<const A*>(args.weight), static_cast<const A*>(nullptr), args.size, walk);
  CPL_LAUNCH((sum_taps<T, A, kSize>), walk.blocks(), dim3(kWalkThreads), 0, stream, args, walk,
             static_cast<A*>(partial));
  launch_reduce_strips<kSize * kSize>(static_cast<const A*>(partial), args.dweight, args.dbias, args.size.channels,
                                      args.size.batch * walk.parts(), stream);
}

}  // namespace
}  // namespace cpl::cuda
