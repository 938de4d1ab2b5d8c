// The gradients of a filter and its bias over a band, summed in registers.
//
//   dweight[i, j] = sum over (r, c) of x[r, c] * dy[r + p - i, c + p - j],  p = k / 2
//
// A block takes kRows rows of x; a register of dy then serves up to kRows taps of one column of the filter. As many
// columns of the filter are summed at a time as the registers hold.
#pragma once

#include <cstdint>

#include "dwconv/cpu_band.h"

namespace cpl {
namespace CPL_ISA {

// Sums go up in three steps, so that not many numbers are added one after another: registers over kRun blocks,
// registers in memory over kFlush runs, then fp64.
template <int kSize, typename A>
class TapSums {
 public:
  static constexpr int kSums = kSize * kSize + 1;  // the taps, row after row, and the bias
  static constexpr int kRows = 4;

  // Adds a band of `rows` (a multiple of kRows) rows of x, `x_stride` apart, with zeros behind its width up to a whole
  // register; `dy` has the same rows and its border.
  void add(const A* x, int64_t x_stride, const Band<A, kSize / 2>& dy, int64_t rows, int64_t width, double* sums) {
    const int64_t across = Reg::round_up(width) / Reg::kCount, blocks = rows / kRows * across;
    for (int64_t first = 0; first < blocks; first += kRun) {
      const int64_t end = first + kRun < blocks ? first + kRun : blocks;
      column_groups<0>(x, x_stride, dy, across, first, end);
      bias(dy, across, first, end);
      if (++runs_ == kFlush) flush(sums);
    }
  }
  void flush(double* sums) {
    for (int k = 0; k < kSums; ++k) {
      sums[k] += Reg::sum(sums_[k]);
      sums_[k] = Vector{};
    }
    runs_ = 0;
  }

 private:
  using Reg = Register<A>;
  using Vector = typename Reg::Vector;
  static constexpr int64_t kRun = 8, kFlush = 32;
  // Columns of the filter at a time: their sums, kRows registers of x and one of dy.
  static constexpr int kMost = (static_cast<int>(kRegisters) - kRows - 2) / kSize;
  static constexpr int kColumns = kMost < 1 ? 1 : kMost < kSize ? kMost : kSize;

  template <int kFirst>
  void column_groups(const A* x, int64_t x_stride, const Band<A, kSize / 2>& dy, int64_t across, int64_t first,
                     int64_t end) {
    if constexpr (kFirst < kSize) {
      constexpr int kCount = kFirst + kColumns < kSize ? kColumns : kSize - kFirst;
      taps<kFirst, kCount>(x, x_stride, dy, across, first, end);
      column_groups<kFirst + kCount>(x, x_stride, dy, across, first, end);
    }
  }

  template <int kFirst, int kCount>
  __attribute__((noinline)) void taps(const A* x, int64_t x_stride, const Band<A, kSize / 2>& dy, int64_t across,
                                      int64_t first, int64_t end) {
    Vector part[kSize][kCount] = {};
    int64_t row = first / across * kRows, block = first % across;
    for (int64_t n = first; n < end; ++n) {
      const int64_t column = block * Reg::kCount;
      const A* const from = x + row * x_stride + column;
      const A* const window = dy.corner(row, column) + kSize - 1 - kFirst;
      Vector mine[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) mine[r] = Reg::load(from + r * x_stride);
#pragma GCC unroll 16
      for (int s = 0; s < kRows + kSize - 1; ++s) {
#pragma GCC unroll 16
        for (int j = 0; j < kCount; ++j) {
          const Vector up = Reg::load(window + s * dy.stride() - j);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            const int i = r + kSize - 1 - s;
            if (i >= 0 && i < kSize) part[i][j] += mine[r] * up;
          }
        }
      }
      if (++block == across) block = 0, row += kRows;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSize; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kCount; ++j) sums_[i * kSize + kFirst + j] += part[i][j];
    }
  }
  void bias(const Band<A, kSize / 2>& dy, int64_t across, int64_t first, int64_t end) {
    Vector part = {};
    int64_t row = first / across * kRows, block = first % across;
    for (int64_t n = first; n < end; ++n) {
      const A* const from = dy.row(row + kSize / 2) + block * Reg::kCount;
      Vector rows = Reg::load(from);
#pragma GCC unroll 16
      for (int r = 1; r < kRows; ++r) rows += Reg::load(from + r * dy.stride());
      part += rows;
      if (++block == across) block = 0, row += kRows;
    }
    sums_[kSums - 1] += part;
  }

  Vector sums_[kSums] = {};
  int64_t runs_ = 0;
};

}  // namespace CPL_ISA
}  // namespace cpl
