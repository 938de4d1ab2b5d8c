// The resize of aggregate_prompts on CUDA: a gather in both directions, from tables that a block makes for itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "aggregate_prompts/cuda_shape.h"
#include "aggregate_prompts/math.h"
#include "common/launch.h"

namespace cpl::cuda {
namespace {

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

}  // namespace
}  // namespace cpl::cuda
