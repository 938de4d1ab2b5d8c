// The convolution of a band: blocks of rows x registers of columns, whose sums stay in registers.
#pragma once

#include <cstdint>

#include "dwconv/cpu_band.h"

namespace cpl {
namespace CPL_ISA {

// The filter of a channel, column after column of it; `flip` turns it round, which is the transposed convolution.
template <int kSize, typename A>
struct Taps {
  A columns[kSize][kSize];

  Taps(const void* weight, int64_t channel, bool flip) {
    const A* taps = static_cast<const A*>(weight) + channel * kSize * kSize;
    for (int i = 0; i < kSize; ++i) {
      for (int j = 0; j < kSize; ++j) {
        const int tap = i * kSize + j;
        columns[j][i] = taps[flip ? kSize * kSize - 1 - tap : tap];
      }
    }
  }
};

// kRows x kWide registers of outputs, from the corner of the first one's window. A column of the filter at a time: each
// row of the image that it covers is read once for all rows of the block.
template <int kSize, int kRows, int kWide, typename A>
__attribute__((always_inline)) inline void convolve_block(const A* corner, int64_t stride, const Taps<kSize, A>& taps,
                                                          A bias, typename Register<A>::Vector (&out)[kRows][kWide]) {
  using Reg = Register<A>;
  using Vector = typename Reg::Vector;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) out[r][v] = Vector{} + bias;
  }
#pragma GCC unroll 1
  for (int j = 0; j < kSize; ++j) {
    const A* const column = taps.columns[j];
#pragma GCC unroll 16
    for (int s = 0; s < kRows + kSize - 1; ++s) {
      Vector x[kWide];
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) x[v] = Reg::load(corner + s * stride + j + v * Reg::kCount);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        if (s < r || s - r >= kSize) continue;
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) out[r][v] += column[s - r] * x[v];
      }
    }
  }
}

// Rows [0, rows) of the band's outputs, to `target`, whose rows lie `width` apart. Where a block or a register does not
// fit at the end it is moved back: the outputs that are computed twice have the same bits.
template <int kSize, typename T, typename A>
class Convolution {
 public:
  Convolution(const Band<A, kSize / 2>& band, int64_t width, const Taps<kSize, A>& taps, A bias)
      : band_(band), width_(width), taps_(taps), bias_(bias) {}

  void run(int64_t rows, T* target) const {
    if (rows >= 2 * kRows) {
      columns<2 * kRows, kRows>(rows, target);
    } else if (rows >= kRows) {
      columns<kRows, kRows>(rows, target);
    } else {
      columns<1, 1>(rows, target);
    }
  }

 private:
  using Reg = Register<A>;
  static constexpr int kRows = 4;

  // Pairs of registers in blocks of kPairRows, a single one in blocks of kSingleRows.
  template <int kSingleRows, int kPairRows>
  void columns(int64_t rows, T* target) const {
    int64_t j = 0;
    for (; j + 2 * Reg::kCount <= width_; j += 2 * Reg::kCount) strip<kPairRows, 2>(rows, j, target);
    for (; j < width_; j += Reg::kCount) {
      const int64_t last = width_ - Reg::kCount;
      strip<kSingleRows, 1>(rows, j > last && last > 0 ? last : j, target);
    }
  }
  template <int kBlockRows, int kWide>
  __attribute__((noinline)) void strip(int64_t rows, int64_t column, T* target) const {
    for (int64_t i = 0; i < rows; i += kBlockRows) {
      const int64_t first = i + kBlockRows > rows ? rows - kBlockRows : i;
      typename Reg::Vector out[kBlockRows][kWide];
      convolve_block<kSize, kBlockRows, kWide>(band_.corner(first, column), band_.stride(), taps_, bias_, out);
      T* to = target + first * width_ + column;
      const int64_t left = width_ - column;
#pragma GCC unroll 16
      for (int r = 0; r < kBlockRows; ++r, to += width_) {
        if (left < Reg::kCount) {
          Reg::narrow_few(to, out[r][0], left);
        } else {
#pragma GCC unroll 4
          for (int v = 0; v < kWide; ++v) Reg::narrow(to + v * Reg::kCount, out[r][v]);
        }
      }
    }
  }

  const Band<A, kSize / 2>& band_;
  int64_t width_;
  const Taps<kSize, A>& taps_;
  A bias_;
};

}  // namespace CPL_ISA
}  // namespace cpl
