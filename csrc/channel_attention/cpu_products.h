// The two matrix products of channel_attention on CPU, over a block of pixels that lies dense in scratch memory:
//
//   gram    G += X Y^T     long sums: one register of partial sums a result, lanes along the pixels
//   apply   Z = M X        short sums: lanes along the pixels too, so neither product transposes anything
//
// Both keep their results in registers, as many as the instruction set has.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {
namespace {

// One register of this instruction set. (common/lanes.h has 64 bytes on each: two dozen of those would not stay in
// the registers of AVX2.)
template <typename A>
struct Register {
#if defined(__AVX512F__)
  static constexpr int kBytes = 64;
#elif defined(__AVX__)
  static constexpr int kBytes = 32;
#else
  static constexpr int kBytes = 16;
#endif
  static constexpr int64_t kCount = kBytes / static_cast<int64_t>(sizeof(A));
  typedef A Vector __attribute__((vector_size(kBytes)));

  static Vector load(const A* p) {  // any alignment
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void set(A* p, const Vector& v) { memcpy(p, &v, sizeof v); }
};

#if defined(__AVX512F__)  // 32 registers
constexpr int kGramRows = 4, kGramColumns = 6, kApplyVectors = 4;
#else  // 16
constexpr int kGramRows = 3, kGramColumns = 4, kApplyVectors = 2;
#endif
constexpr int kApplyRows = 6;

// Pixels of a panel, the width of `apply`'s results.
template <typename A>
constexpr int64_t kPanel = kApplyVectors * Register<A>::kCount;

// Rows of a block lie this far apart: an odd number of 256 bytes, so that a panel's rows fall into different cache
// sets. `pixels` is a multiple of 256 bytes.
template <typename A>
constexpr int64_t row_pitch(int64_t pixels) {
  constexpr int64_t kPart = 256 / static_cast<int64_t>(sizeof(A));
  return pixels / kPart % 2 ? pixels : pixels + kPart;
}

// The sum of kBytes of numbers, in a fixed tree: halves are added as vectors down to 16 bytes.
template <int kBytes, typename A>
inline A sum_of(const A* lanes) {
  constexpr int64_t kHalf = kBytes / 2 / static_cast<int64_t>(sizeof(A));
  if constexpr (kBytes > 16) {
    typedef A Half __attribute__((vector_size(kBytes / 2)));
    Half low, high;
    memcpy(&low, lanes, sizeof low);
    memcpy(&high, lanes + kHalf, sizeof high);
    low += high;
    A halves[kHalf];
    memcpy(halves, &low, sizeof halves);
    return sum_of<kBytes / 2>(halves);
  } else if constexpr (kHalf == 2) {
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  } else {
    return lanes[0] + lanes[1];
  }
}

template <typename A>
inline A sum_of(const typename Register<A>::Vector& v) {
  A lanes[Register<A>::kCount];
  memcpy(lanes, &v, sizeof lanes);
  return sum_of<Register<A>::kBytes>(lanes);
}

// A tile of X Y^T over `pixels`, a multiple of a register and not none: rows x[i] by rows y[j].
template <typename A>
inline void gram_tile(const A* const (&x)[kGramRows], const A* const (&y)[kGramColumns], int64_t pixels, A* tile) {
  using R = Register<A>;
  typename R::Vector sum[kGramRows][kGramColumns], row[kGramRows];
  for (int i = 0; i < kGramRows; ++i) row[i] = R::load(x[i]);
  for (int j = 0; j < kGramColumns; ++j) {
    for (int i = 0; i < kGramRows; ++i) sum[i][j] = row[i] * R::load(y[j]);
  }
  for (int64_t p = R::kCount; p < pixels; p += R::kCount) {
    for (int i = 0; i < kGramRows; ++i) row[i] = R::load(x[i] + p);
    for (int j = 0; j < kGramColumns; ++j) {
      const typename R::Vector column = R::load(y[j] + p);
      for (int i = 0; i < kGramRows; ++i) sum[i][j] += row[i] * column;
    }
  }
  for (int i = 0; i < kGramRows; ++i) {
    for (int j = 0; j < kGramColumns; ++j) {
      tile[i * kGramColumns + j] = sum_of<A>(sum[i][j]);
    }
  }
}

// gram += X Y^T, for X and Y of `width` rows, `pitch` apart; `pixels` is a multiple of a register. In fp64, so that a
// chunk adds the same however many came before it. Rows past the last are the last once more, and their sums dropped.
template <typename A>
void add_gram(const A* x, const A* y, int64_t width, int64_t pitch, int64_t pixels, double* gram) {
  const auto row = [&](const A* block, int64_t index) { return block + (index < width ? index : width - 1) * pitch; };
  for (int64_t i = 0; i < width; i += kGramRows) {
    const A* rows[kGramRows];
    for (int r = 0; r < kGramRows; ++r) rows[r] = row(x, i + r);
    for (int64_t j = 0; j < width; j += kGramColumns) {
      const A* columns[kGramColumns];
      for (int s = 0; s < kGramColumns; ++s) columns[s] = row(y, j + s);
      A tile[kGramRows * kGramColumns];
      gram_tile<A>(rows, columns, pixels, tile);
      for (int r = 0; r < kGramRows && i + r < width; ++r) {
        for (int s = 0; s < kGramColumns && j + s < width; ++s) {
          gram[(i + r) * width + j + s] += static_cast<double>(tile[r * kGramColumns + s]);
        }
      }
    }
  }
}

// A width x width matrix as `apply` reads it: kApplyRows rows side by side, zeros below the last.
template <typename A>
struct Packed {
  static int64_t size(int64_t width) { return (width + kApplyRows - 1) / kApplyRows * kApplyRows * width; }
  // Entry (row, column) of M.
  static A& at(A* packed, int64_t width, int64_t row, int64_t column) {
    return packed[(row / kApplyRows * width + column) * kApplyRows + row % kApplyRows];
  }
};

// z = M x for a panel, or with kProject z = M x - scale * own; rows of x and own `pitch` apart, those of z `z_pitch`.
template <bool kProject, typename A>
void apply_panel(const A* packed, const A* x, int64_t width, int64_t pitch, A* z, int64_t z_pitch, const A* scale,
                 const A* own) {
  using R = Register<A>;
  typename R::Vector sum[kApplyRows][kApplyVectors], column[kApplyVectors];
  for (int64_t i = 0; i < width; i += kApplyRows) {
    const A* m = packed + i * width;
    for (int v = 0; v < kApplyVectors; ++v) column[v] = R::load(x + v * R::kCount);
    for (int r = 0; r < kApplyRows; ++r) {
      for (int v = 0; v < kApplyVectors; ++v) sum[r][v] = m[r] * column[v];
    }
    for (int64_t k = 1; k < width; ++k) {
      m += kApplyRows;
      for (int v = 0; v < kApplyVectors; ++v) column[v] = R::load(x + k * pitch + v * R::kCount);
      for (int r = 0; r < kApplyRows; ++r) {
        for (int v = 0; v < kApplyVectors; ++v) sum[r][v] += m[r] * column[v];
      }
    }
    for (int r = 0; r < kApplyRows; ++r) {
      if (i + r >= width) break;
      for (int v = 0; v < kApplyVectors; ++v) {
        if constexpr (kProject) sum[r][v] -= scale[i + r] * R::load(own + (i + r) * pitch + v * R::kCount);
        R::set(z + (i + r) * z_pitch + v * R::kCount, sum[r][v]);
      }
    }
  }
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
