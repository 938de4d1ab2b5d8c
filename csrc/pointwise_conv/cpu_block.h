// The product of a few rows and a few registers of columns, summed in registers.
//
//   block[r, c] = sum over k of left[r, k] * right[k, c]
//
// left is read number by number where it lies (a number serves all columns), right register by register from a panel
// that was packed for it. So many rows and registers that their sums fill the processor's registers: then a step of k
// multiplies kRows * kVectors times for kRows + kVectors reads.
#pragma once

#include <cstdint>

#include "common/registers.h"

namespace cpl {
namespace CPL_ISA {

constexpr int kBlockRows = 6, kBlockVectors = kRegisters == 32 ? 4 : 2;

// The columns of a whole panel.
template <typename A>
constexpr int64_t kPanel = kBlockVectors * Register<A>::kCount;

// `rows` numbers of one column lie row_stride apart, and `step` from one column to the next.
template <typename A>
struct Left {
  const A* data;
  int64_t row_stride, step;
};

template <typename A, int kRows, int kVectors>
struct Sums {
  typename Register<A>::Vector of[kRows][kVectors];
};

// Lines of the cache that are asked for while something is computed: rows of so many bytes. A processor has about a
// dozen requests under way at a time, and what it wants itself waits behind them: so they are made one by one.
class Fetching {
 public:
  Fetching() = default;
  Fetching(const void* first, int64_t stride, int64_t row_bytes, int64_t rows)
      : at_(static_cast<const char*>(first)),
        end_(at_ + row_bytes),
        stride_(stride),
        row_bytes_(row_bytes),
        left_(rows * ((row_bytes + kLine - 1) / kLine)) {}

  // So that as many calls of next() ask for all.
  void divide(int64_t calls) {
    if (left_ > 0) each_ = (left_ + calls - 1) / calls;
  }
  void all() { divide(1), next(); }
  void next() {
    const int64_t count = each_ < left_ ? each_ : left_;
    for (int64_t i = 0; i < count; ++i) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
      if (at_ >= end_) end_ += stride_, at_ = end_ - row_bytes_;
    }
    left_ -= count;
  }

 private:
  static constexpr int64_t kLine = 64;
  const char *at_ = nullptr, *end_ = nullptr;
  int64_t stride_ = 0, row_bytes_ = 0, left_ = 0, each_ = 0;
};

template <typename A, int kRows, int kVectors>
inline __attribute__((always_inline)) Sums<A, kRows, kVectors> multiply(const Left<A>& left, const A* right,
                                                                        int64_t depth, Fetching& fetching) {
  using Reg = Register<A>;
  using Vector = typename Reg::Vector;
  constexpr int64_t kRun = 64;
  fetching.divide((depth + kRun - 1) / kRun);
  Sums<A, kRows, kVectors> sums = {};
  const A* from = left.data;
  for (int64_t first = 0; first < depth; first += kRun) {
    fetching.next();
    const int64_t end = first + kRun < depth ? first + kRun : depth;
#pragma GCC unroll 2
    for (int64_t k = first; k < end; ++k, from += left.step, right += kVectors * Reg::kCount) {
      Vector columns[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) columns[v] = Reg::load(right + v * Reg::kCount);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vector one = from[r * left.row_stride] - Vector{};  // x - 0 is x, so this is a broadcast; 0 + x is not
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums.of[r][v] += one * columns[v];
      }
    }
  }
  return sums;
}

// store(sums) with the sums of rows x vectors of registers.
template <typename A, int kRows, int kVectors, typename Store>
__attribute__((noinline)) void block(const Left<A>& left, const A* right, int64_t depth, Fetching fetching,
                                     const Store& store) {
  store(multiply<A, kRows, kVectors>(left, right, depth, fetching));
}

template <typename A, int kRows, typename Store, int kVectors = kBlockVectors>
void block_of_vectors(int64_t vectors, const Left<A>& left, const A* right, int64_t depth, const Fetching& fetching,
                      const Store& store) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) {
      return block_of_vectors<A, kRows, Store, kVectors - 1>(vectors, left, right, depth, fetching, store);
    }
  }
  block<A, kRows, kVectors>(left, right, depth, fetching, store);
}

// A block of as many rows and registers as there are.
template <typename A, typename Store, int kRows = kBlockRows>
void block_of(int64_t rows, int64_t vectors, const Left<A>& left, const A* right, int64_t depth,
              const Fetching& fetching, const Store& store) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return block_of<A, Store, kRows - 1>(rows, vectors, left, right, depth, fetching, store);
  }
  block_of_vectors<A, kRows>(vectors, left, right, depth, fetching, store);
}

}  // namespace CPL_ISA
}  // namespace cpl
