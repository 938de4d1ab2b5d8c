// Planes walked row by row on a CPU, for 3x3 kernels: rings of rows, the convolution of a row, the sums for its taps.
#pragma once

#include <cstdint>

#include "common/lanes.h"

namespace cpl {
namespace CPL_ISA {

constexpr int64_t kTaps = 9;

// Three rows of an image plane; a row lives in slot (index % 3). Each has a zero before it, and zeros behind it
// up to a whole number of lanes and one more.
template <typename A>
class Ring {
 public:
  Ring(A* memory, int64_t width) : memory_(memory), width_(width) {
    for (int64_t i = 0; i < size(width); ++i) memory_[i] = 0;
  }
  static int64_t stride(int64_t width) { return Lanes<A>::round_up(width) + Lanes<A>::kCount; }
  static int64_t size(int64_t width) { return 3 * stride(width) + Lanes<A>::kCount; }

  // Row `index` from its first real column.
  A* row(int64_t index) const { return memory_ + (index + 3) % 3 * stride(width_) + Lanes<A>::kCount; }

  template <typename T>
  void fill(int64_t index, const T* source) const {
    A* __restrict target = row(index);
#pragma omp simd
    for (int64_t j = 0; j < width_; ++j) target[j] = load(source + j);
  }
  void clear(int64_t index) const {
    A* target = row(index);
    for (int64_t j = 0; j < width_; ++j) target[j] = 0;
  }

 private:
  A* memory_;
  int64_t width_;
};

// out[j] = bias + sum of tap(i, j) * rows; `flip` turns the taps round, which is the transposed convolution.
template <bool kFlip, typename A>
inline void convolve_row(const Ring<A>& rows, int64_t index, const A* taps, A bias, A* __restrict out, int64_t width) {
  const A* __restrict above = rows.row(index - 1);
  const A* __restrict here = rows.row(index);
  const A* __restrict below = rows.row(index + 1);
  A w[kTaps];
  for (int64_t k = 0; k < kTaps; ++k) w[k] = taps[kFlip ? kTaps - 1 - k : k];
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    A sum = bias;
    sum += w[0] * above[j - 1] + w[1] * above[j] + w[2] * above[j + 1];
    sum += w[3] * here[j - 1] + w[4] * here[j] + w[5] * here[j + 1];
    sum += w[6] * below[j - 1] + w[7] * below[j] + w[8] * below[j + 1];
    out[j] = sum;
  }
}

// Sums of gradient * x moved by each tap, and of the gradient: in lanes over a row, over kFlush rows, then in fp64, so
// that not many numbers are added up one after another.
template <typename A>
class TapSums {
 public:
  // Row `index` of the image and its gradient; both rows are zero behind their width.
  void add(const Ring<A>& rows, int64_t index, const A* gradient, int64_t width, double* sums) {
    const A* const x[3] = {rows.row(index - 1), rows.row(index), rows.row(index + 1)};
    Vector part[kTaps + 1] = {};
    for (int64_t j = 0; j < width; j += Lanes<A>::kCount) {
      const Vector g = Lanes<A>::load(gradient + j);
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t d = 0; d < 3; ++d) part[3 * i + d] += g * Lanes<A>::load(x[i] + j + d - 1);
      }
      part[kTaps] += g;
    }
    for (int64_t k = 0; k <= kTaps; ++k) sums_[k] += part[k];
    if (++rows_ == kFlush) flush(sums);
  }
  void flush(double* sums) {
    for (int64_t k = 0; k <= kTaps; ++k) {
      sums[k] += Lanes<A>::sum(sums_[k]);
      sums_[k] = Vector{};
    }
    rows_ = 0;
  }

 private:
  using Vector = typename Lanes<A>::Vector;
  static constexpr int64_t kFlush = 8;
  Vector sums_[kTaps + 1] = {};
  int64_t rows_ = 0;
};

}  // namespace CPL_ISA
}  // namespace cpl
