// The last step of the backward: one sum of dweight and dbias from the rows that the blocks left.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace cpl::cuda {
namespace {

constexpr int kReduceColumns = 8;  // 32 bytes of a row of fp32: a sector
constexpr int kReduceRows = 64;

// A block takes a few columns of partial [rows, 2 * C]; a thread every 64th row, then a tree. In fp64, so that
// thousands of rows lose nothing.
template <typename A>
__global__ void __launch_bounds__(kReduceColumns* kReduceRows)
    reduce_rows(const A* partial, A* dweight, A* dbias, int64_t rows, int64_t channels) {
  __shared__ double sums[kReduceRows][kReduceColumns];
  const int64_t columns = 2 * channels, column = static_cast<int64_t>(blockIdx.x) * kReduceColumns + threadIdx.x;
  double sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t r = threadIdx.y; r < rows; r += kReduceRows) sum += static_cast<double>(partial[r * columns + column]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  for (unsigned half = kReduceRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) sums[threadIdx.y][threadIdx.x] += sums[threadIdx.y + half][threadIdx.x];
  }
  if (threadIdx.y > 0 || column >= columns) return;
  (column < channels ? dweight[column] : dbias[column - channels]) = static_cast<A>(sums[0][threadIdx.x]);
}

}  // namespace
}  // namespace cpl::cuda
