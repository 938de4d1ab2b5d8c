// The small matrices of channel_attention on CUDA: lanes along the columns, a warp for each row or a part of all rows.
#pragma once

#include <cmath>
#include <cstdint>

#include "channel_attention/math.h"
#include "channel_attention/op.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kRows = 4;     // warps of a block, a row each
constexpr int kSharers = 8;  // warps of a block, a part of each column

// What is known of the heads of all images, one behind the other.
template <typename A>
struct Heads {
  const A* temperature;  // [heads]
  A* q_norm;             // [.., c]
  A* k_norm;             // [.., c]
  A* cosines;            // [.., c, c]
  A* attention;          // [.., c, c]
  const A* products;     // [.., slices, c, c]
  const A* squares;      // [.., slices, 2, c]
  int64_t slices;
};

// The sum over slices, in order, and in fp64 as on a CPU: a photo has thousands of pixels in a slice and hundreds of
// slices. Many are on their way at once: one after the other they would take longer than the products.
template <typename A>
__device__ A over_slices(const A* first, int64_t stride, int64_t slices) {
  constexpr int kAtOnce = 8;
  double total = 0;
  for (int64_t s = 0; s < slices; s += kAtOnce) {
    A some[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n, first += stride) some[n] = s + n < slices ? *first : A(0);
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) total += static_cast<double>(some[n]);
  }
  return static_cast<A>(total);
}

template <typename A>
__device__ A warp_max(A value) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, lane);
    value = other > value ? other : value;
  }
  return value;
}

// softmax(t S) of a row, from and to memory that only this lane touches. A NaN in the row makes all of it NaN.
template <typename A>
__device__ void softmax(const A* cosines, A temperature, int64_t width, A* row) {
  A largest = static_cast<A>(-INFINITY);
  for (int64_t j = threadIdx.x; j < width; j += kWarp) {
    const A logit = temperature * cosines[j];
    largest = logit > largest ? logit : largest;
  }
  largest = warp_max(largest);
  A sum = 0;
  for (int64_t j = threadIdx.x; j < width; j += kWarp) {
    row[j] = exp(temperature * cosines[j] - largest);
    sum += row[j];
  }
  sum = warp_sum(sum);
  for (int64_t j = threadIdx.x; j < width; j += kWarp) row[j] /= sum;
}

// Norms, cosines and attention.
template <typename A>
__global__ void __launch_bounds__(kWarp* kRows) forward_rows(ChannelAttentionSize size, Heads<A> heads) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y, width = size.width;
  if (row >= size.batch * size.heads * width) return;  // a whole warp
  const int64_t head = row / width, i = row % width;
  const A* const squares = heads.squares + head * heads.slices * 2 * width;
  const A* const products = heads.products + (head * heads.slices * width + i) * width;
  A* const cosines = heads.cosines + row * width;
  const A q_norm = gpu::attention_norm(over_slices(squares + i, 2 * width, heads.slices));
  for (int64_t j = threadIdx.x; j < width; j += kWarp) {
    const A k_norm = gpu::attention_norm(over_slices(squares + width + j, 2 * width, heads.slices));
    cosines[j] = over_slices(products + j, width * width, heads.slices) / q_norm / k_norm;
    if (i == 0) heads.k_norm[head * width + j] = k_norm;
  }
  if (threadIdx.x == 0) heads.q_norm[row] = q_norm;
  softmax(cosines, heads.temperature[head % size.heads], width, heads.attention + row * width);
}

// Backward, from the products dA = dy v^T: the attention again, M, a, and each row's share of dtemperature.
template <typename A>
__global__ void __launch_bounds__(kWarp* kRows)
    backward_rows(ChannelAttentionSize size, Heads<A> heads, A* matrix, A* projections, A* share) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y, width = size.width;
  if (row >= size.batch * size.heads * width) return;  // a whole warp
  const int64_t head = row / width, i = row % width;
  const A* const products = heads.products + (head * heads.slices * width + i) * width;
  const A* const cosines = heads.cosines + row * width;
  const A temperature = heads.temperature[head % size.heads], q_norm = heads.q_norm[row];
  A* const attention = heads.attention + row * width;
  A* const m = matrix + row * width;
  softmax(cosines, temperature, width, attention);
  A inner = 0;
  for (int64_t j = threadIdx.x; j < width; j += kWarp) {
    m[j] = over_slices(products + j, width * width, heads.slices);
    inner += m[j] * attention[j];
  }
  inner = warp_sum(inner);
  A along = 0, of_row = 0;
  for (int64_t j = threadIdx.x; j < width; j += kWarp) {
    const A dlogit = attention[j] * (m[j] - inner), dcosine = temperature * dlogit;
    of_row += dlogit * cosines[j];
    along += dcosine * cosines[j];
    m[j] = dcosine / q_norm / heads.k_norm[head * width + j];
  }
  along = warp_sum(along);
  of_row = warp_sum(of_row);
  if (threadIdx.x != 0) return;
  projections[head * 2 * width + i] = gpu::attention_projection(along, q_norm);
  share[row] = of_row;
}

// b of a column by a thread in each warp; M has the gradient of the cosines divided by both norms. The blocks behind
// those of the columns: dtemperature of a head, the shares of all its rows in all images.
template <typename A>
__global__ void __launch_bounds__(kWarp* kSharers)
    backward_columns(ChannelAttentionSize size, Heads<A> heads, const A* matrix, A* projections, const A* share,
                     A* dtemperature, unsigned column_blocks) {
  __shared__ A sums[kSharers][kWarp];
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x, width = size.width;
  const bool column = blockIdx.x < column_blocks, inside = index < size.batch * size.heads * width;
  const int64_t head = column ? index / width : blockIdx.x - column_blocks, j = index % width;
  const A k_norm = column && inside ? heads.k_norm[index] : A(1);
  A sum = 0;
  if (column) {
    for (int64_t i = threadIdx.y; inside && i < width; i += kSharers) {
      const int64_t entry = (head * width + i) * width + j;
      sum += matrix[entry] * heads.q_norm[head * width + i] * k_norm * heads.cosines[entry];
    }
  } else {
    for (int64_t n = threadIdx.y * kWarp + threadIdx.x; n < size.batch * width; n += kWarp * kSharers) {
      sum += share[(n / width * size.heads + head) * width + n % width];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0) return;
  A total = 0;
  for (int n = 0; n < kSharers; ++n) total += sums[n][threadIdx.x];
  if (!column) {
    total = warp_sum(total);
    if (threadIdx.x == 0) dtemperature[head] = total;
  } else if (inside) {
    projections[(head * 2 + 1) * width + j] = gpu::attention_projection(total, k_norm);
  }
}

}  // namespace
}  // namespace cpl::cuda
