// A band of rows of a plane, widened, with the zero border that a k x k filter reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/registers.h"

namespace cpl {
namespace CPL_ISA {

// Rows of a plane from `first - border` on, each with zeros behind it. What stands behind a row is also what stands
// before the next one, so a border costs no more than one row needs.
template <typename A, int64_t kBorder>
class Band {
 public:
  static int64_t stride_of(int64_t width) { return Reg::round_up(width + kBorder); }
  // Elements for so many rows, with zeros before them for the first row's border, and a register's worth behind them.
  static int64_t size(int64_t rows, int64_t width) { return before() + rows * stride_of(width) + Reg::kCount; }

  Band(A* memory, int64_t rows, int64_t width) : rows_(memory + before()), stride_(stride_of(width)), width_(width) {
    for (int64_t j = 0; j < before(); j += Reg::kCount) Reg::set(memory + j, Vector{});
    Reg::set(rows_ + rows * stride_, Vector{});
  }
  int64_t stride() const { return stride_; }
  A* row(int64_t index) const { return rows_ + index * stride_; }
  // Where the filter's first tap reads for the output at (row, column) of the band.
  const A* corner(int64_t row, int64_t column) const { return rows_ + row * stride_ + column - kBorder; }

  // Fills band rows [from, to) with rows of the plane from `source_row` on; zeros where the plane has none.
  template <typename T>
  void fill(int64_t from, int64_t to, const T* plane, int64_t source_row, int64_t height) const {
    for (int64_t i = from; i < to; ++i, ++source_row) {
      if (source_row >= 0 && source_row < height) {
        copy(row(i), plane + source_row * width_);
      } else {
        clear(row(i), 0);
      }
    }
  }
  // The last `count` rows of so many become the first.
  void keep_last(int64_t rows, int64_t count) const {
    memmove(rows_, row(rows - count), sizeof(A) * static_cast<size_t>(count * stride_));
  }

 private:
  using Reg = Register<A>;
  using Vector = typename Reg::Vector;

  // A border of 3 is more than one register where that holds two fp64.
  static constexpr int64_t before() { return Reg::round_up(kBorder > 0 ? kBorder : 1); }
  void clear(A* row, int64_t from) const {
    for (int64_t j = from; j < stride_; j += Reg::kCount) Reg::set(row + j, Vector{});
  }
  template <typename T>
  void copy(A* row, const T* source) const {
    const int64_t whole = width_ / Reg::kCount * Reg::kCount;
    if (whole == 0) {
      Reg::set(row, Reg::widen_few(source, width_));
      return clear(row, Reg::kCount);
    }
    for (int64_t j = 0; j < whole; j += Reg::kCount) Reg::set(row + j, Reg::widen(source + j));
    clear(row, whole);
    if (whole < width_) Reg::set(row + width_ - Reg::kCount, Reg::widen(source + width_ - Reg::kCount));
  }

  A* rows_;
  int64_t stride_, width_;
};

}  // namespace CPL_ISA
}  // namespace cpl
