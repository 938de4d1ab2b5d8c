// A row of a tile of products, and the sums of rows and columns: alone, or both with one look at the tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "info_nce/math.h"
#include "info_nce/op.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kFlush = 1024;
constexpr int64_t kStrip = 128;      // columns that a work item takes: their sums stay in the L1 cache
constexpr int64_t kChunk = 1 << 16;  // products of a chunk of rows, looked at twice: in fp32 256 KiB of the L2 cache
constexpr int64_t kMostRows = 256;   // of a chunk: its columns are summed in fp32
// Between arrays of as many columns: where the same element of several lies a multiple of 4 KiB apart, as of 1024
// columns, reading one waits for the writing of another. With a quarter of that, four arrays and the row are out of
// each other's way.
constexpr size_t kApart = 1024;
constexpr int64_t kSquare = 32;  // rows and columns that are transposed at a time

// A row of a tile, without the element that is left out.
template <typename A>
struct Row {
  A* x;
  int64_t place;    // of the query
  int64_t columns;  // of the tile
  int64_t skipped;  // its column in the tile, or -1

  Row(const ProductTile& tile, int64_t i)
      : x(static_cast<A*>(tile.data) + i * tile.stride), place(tile.first_row + i), columns(tile.columns), skipped(-1) {
    const int64_t own = place - tile.first_column;
    if (tile.without_diagonal && own >= 0 && own < columns) skipped = own;
  }
  // f(first, end) for pieces of at most kFlush elements. Where it is not inlined, the compiler takes a loop for a
  // vector one only if f has copies of what it captured.
  template <typename F>
  void pieces(const F& f) const {
    const auto part = [&](int64_t first, int64_t end) {
      for (; first < end; first += kFlush) f(first, std::min(end, first + kFlush));
    };
    if (skipped < 0) return part(0, columns);
    part(0, skipped);
    part(skipped + 1, columns);
  }
  // The element of that column of the whole matrix, or null.
  A* at(int64_t column, const ProductTile& tile) const {
    const int64_t j = column - tile.first_column;
    return j >= 0 && j < columns && j != skipped ? x + j : nullptr;
  }
};

// The least finite number where all are -inf: less that, -inf is 0 in a sum of exponentials, and not NaN.
template <typename A>
A largest(const Row<A>& row) {
  A best = std::numeric_limits<A>::lowest();
  row.pieces([&](int64_t first, int64_t end) {
    const A* __restrict x = row.x;
    A m = best;
#pragma omp simd reduction(max : m)
    for (int64_t j = first; j < end; ++j) m = x[j] > m ? x[j] : m;
    best = m;
  });
  return best;
}

// The positives of a row: how many, and the sum of what their products lack of `max`. Summed as they are, products
// would be rounded to the last place of what they have in common.
struct Wanted {
  double count = 0;
  double lack = 0;

  double products(double max) const { return count * max - lack; }  // their sum; fp64 holds it
};

template <typename A>
Wanted positives_of_row(const Row<A>& row, A max, const ProductTile& tile, const Positives& positives) {
  Wanted found;
  if (positives.row_targets != nullptr) {
    const A* const target = row.at(positives.row_targets[row.place], tile);
    if (target != nullptr) found = {1, static_cast<double>(max) - static_cast<double>(*target)};
  } else if (positives.row_labels != nullptr) {
    const int32_t own = positives.row_labels[row.place];
    row.pieces([&](int64_t first, int64_t end) {
      const A* __restrict x = row.x;
      const int32_t* __restrict labels = positives.column_labels + tile.first_column;
      const int32_t wanted = own;
      const A top = max;
      A lack = 0, count = 0;
#pragma omp simd reduction(+ : lack, count)
      for (int64_t j = first; j < end; ++j) {
        lack += labels[j] == wanted ? top - x[j] : A(0);
        count += labels[j] == wanted ? A(1) : A(0);
      }
      found.lack += static_cast<double>(lack);
      found.count += static_cast<double>(count);
    });
  }
  return found;
}

template <typename A>
void mirror(A* x, int64_t rows, int64_t stride, int threads) {
  const int64_t strips = (rows + kSquare - 1) / kSquare;
  const auto strip = [&](int64_t s) {
    const int64_t first = s * kSquare, end = std::min(rows, first + kSquare);
    for (int64_t left = 0; left < end; left += kSquare) {
      // By way of a square of our own: rows a power of two apart share few places in the cache.
      alignas(kCacheLine) A square[kSquare][kSquare];
      const int64_t below = std::min(rows, left + kSquare);
      for (int64_t j = left; j < below; ++j) std::copy_n(x + j * stride + first, end - first, square[j - left]);
      for (int64_t i = first; i < end; ++i) {
        A* __restrict row = x + i * stride + left;
        const int64_t count = std::min(i - left, kSquare);
        for (int64_t j = 0; j < count; ++j) row[j] = square[j][i - first];
      }
    }
  };
  // A long one and a short one each, so that threads have as much to do.
  parallel_for((strips + 1) / 2, threads, 0, [&](int64_t s, char*) {
    strip(s);
    if (strips - 1 - s != s) strip(strips - 1 - s);
  });
}

// Terms that add up to `sum` beside the maximum `max`, to those seen before.
inline void merge(const Sums& sums, int64_t place, double max, double sum, double scale) {
  const double before = sums.max[place];
  if (max > before) {
    sums.sum[place] = sums.sum[place] * std::exp((before - max) * scale) + sum;
    sums.max[place] = max;
  } else {
    sums.sum[place] += sum * std::exp((max - before) * scale);
  }
}

template <typename A>
void rows(const ProductTile& tile, const Sums& sums, const Positives& positives, int threads) {
  const A scale = static_cast<A>(tile.scale);
  parallel_for(tile.rows, threads, 0, [&](int64_t i, char*) {
    const Row<A> row(tile, i);
    if (row.columns == (row.skipped >= 0)) return;  // nothing to compare with
    const A max = largest(row);
    sums.positive[row.place] += positives_of_row(row, max, tile, positives).products(static_cast<double>(max));
    double sum = 0;
    row.pieces([&](int64_t first, int64_t end) {
      const A* __restrict x = row.x;
      const A top = max, unit = scale;
      A s = 0;
#pragma omp simd reduction(+ : s)
      for (int64_t j = first; j < end; ++j) s += exp_below_one((x[j] - top) * unit);
      sum += static_cast<double>(s);
    });
    merge(sums, row.place, static_cast<double>(max), sum, tile.scale);
  });
}

enum class Tags { kNone, kLabels, kColumnTargets };

// The tags of a tile's columns, and what row i has in common with those that are positive with it.
template <Tags kTags>
const int32_t* column_tags(const ProductTile& tile, const Positives& positives) {
  if constexpr (kTags == Tags::kLabels) return positives.column_labels + tile.first_column;
  if constexpr (kTags == Tags::kColumnTargets) return positives.column_targets + tile.first_column;
  return nullptr;
}

template <Tags kTags>
int32_t row_tag(const ProductTile& tile, const Positives& positives, int64_t i) {
  const int64_t place = tile.first_row + i;
  return kTags == Tags::kLabels ? positives.row_labels[place] : static_cast<int32_t>(place);
}

// Of a chunk of a tile's rows, what Sums are of the tile: of each column. With labels positives are summed as Wanted
// has them; else a column has one at most, and that is its product.
template <typename A>
struct ColumnParts {
  A* max;
  A* sum;
  A* positive;
  A* count;  // with labels; else 0
};

// The first look at a row: its largest product, and those of the columns.
template <Tags kTags, typename A>
A look(const Row<A>& row, const ProductTile& tile, const Positives& positives, int64_t i, const ColumnParts<A>& parts) {
  A best = std::numeric_limits<A>::lowest();
  row.pieces([&](int64_t first, int64_t end) {
    const A* __restrict x = row.x;
    A* __restrict maxima = parts.max;
    A* __restrict wanted = parts.positive;
    const int32_t own = row_tag<kTags>(tile, positives, i);
    const int32_t* __restrict tags = column_tags<kTags>(tile, positives);
    A m = best;
#pragma omp simd reduction(max : m)
    for (int64_t j = first; j < end; ++j) {
      m = x[j] > m ? x[j] : m;
      maxima[j] = x[j] > maxima[j] ? x[j] : maxima[j];
      if constexpr (kTags == Tags::kColumnTargets) wanted[j] += tags[j] == own ? x[j] : A(0);
    }
    best = m;
  });
  return best;
}

// The second: the row's sum and, with labels, its positives; and what the row adds to those of the columns.
template <bool kLabels, typename A>
double add_exps(const Row<A>& row, A max, const ProductTile& tile, const Positives& positives,
                const ColumnParts<A>& parts, Wanted* found) {
  double sum = 0;
  row.pieces([&](int64_t first, int64_t end) {
    const A* __restrict x = row.x;
    const A* __restrict maxima = parts.max;
    A* __restrict sums = parts.sum;
    A* __restrict wanted = parts.positive;
    A* __restrict counts = parts.count;
    const int32_t own = kLabels ? positives.row_labels[row.place] : 0;
    const int32_t* __restrict labels = kLabels ? positives.column_labels + tile.first_column : nullptr;
    const A top = max, unit = static_cast<A>(tile.scale);
    A s = 0, lack = 0, count = 0;
    if constexpr (kLabels) {
#pragma omp simd reduction(+ : s, lack, count)
      for (int64_t j = first; j < end; ++j) {
        const A of_row = top - x[j], of_column = maxima[j] - x[j];
        s += exp_below_one(of_row * -unit);
        sums[j] += exp_below_one(of_column * -unit);
        // Not less what x has more: GCC 12 takes `lack -= condition ? a : 0` for a conditional change of lack, and then
        // writes beside the vector that it keeps lack in.
        lack += labels[j] == own ? of_row : A(0);
        wanted[j] += labels[j] == own ? of_column : A(0);
        count += labels[j] == own ? A(1) : A(0);
        counts[j] += labels[j] == own ? A(1) : A(0);
      }
    } else {
#pragma omp simd reduction(+ : s)
      for (int64_t j = first; j < end; ++j) {
        s += exp_below_one((x[j] - top) * unit);
        sums[j] += exp_below_one((x[j] - maxima[j]) * unit);
      }
    }
    sum += static_cast<double>(s);
    found->lack += static_cast<double>(lack);
    found->count += static_cast<double>(count);
  });
  return sum;
}

template <Tags kTags, typename A>
void add_chunk(const ProductTile& tile, const Sums& row_sums, const Positives& positives, int64_t first, int64_t end,
               A* row_max, const ColumnParts<A>& parts) {
  std::fill_n(parts.max, tile.columns, std::numeric_limits<A>::lowest());
  for (A* part : {parts.sum, parts.positive, parts.count}) std::fill_n(part, tile.columns, A(0));
  for (int64_t i = first; i < end; ++i) {
    row_max[i - first] = look<kTags>(Row<A>(tile, i), tile, positives, i, parts);
  }
  for (int64_t i = first; i < end; ++i) {
    const Row<A> row(tile, i);
    const A max = row_max[i - first];
    Wanted found;
    const double sum = add_exps<kTags == Tags::kLabels>(row, max, tile, positives, parts, &found);
    if constexpr (kTags != Tags::kLabels) found = positives_of_row(row, max, tile, positives);
    row_sums.positive[row.place] += found.products(static_cast<double>(max));
    merge(row_sums, row.place, static_cast<double>(max), sum, tile.scale);
  }
}

// All chunks' parts, in their order.
template <typename A>
void merge_columns(const ProductTile& tile, const Sums& sums, const Positives& positives, const ColumnParts<A>* parts,
                   int64_t chunks, int threads) {
  parallel_for((tile.columns + kStrip - 1) / kStrip, threads, 0, [&](int64_t strip, char*) {
    const int64_t first = strip * kStrip, count = std::min(kStrip, tile.columns - first);
    double max[kStrip], sum[kStrip] = {}, positive[kStrip] = {};
    std::fill_n(max, kStrip, -std::numeric_limits<double>::infinity());
    for (int64_t c = 0; c < chunks; ++c) {
      const A* __restrict largest = parts[c].max + first;
      for (int64_t j = 0; j < count; ++j) max[j] = std::max(max[j], static_cast<double>(largest[j]));
    }
    for (int64_t c = 0; c < chunks; ++c) {
      const A* __restrict largest = parts[c].max + first;
      const A* __restrict part = parts[c].sum + first;
      const A* __restrict wanted = parts[c].positive + first;
      const A* __restrict counts = parts[c].count + first;
      const double sign = positives.row_labels != nullptr ? -1 : 1;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        sum[j] += static_cast<double>(part[j]) * exp_below_one((static_cast<double>(largest[j]) - max[j]) * tile.scale);
        positive[j] +=
            static_cast<double>(counts[j]) * static_cast<double>(largest[j]) + sign * static_cast<double>(wanted[j]);
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      const int64_t place = tile.first_column + first + j;
      sums.positive[place] += positive[j];
      merge(sums, place, max[j], sum[j], tile.scale);
    }
  });
}

template <typename A>
void rows_and_columns(const ProductTile& tile, const Sums& row_sums, const Sums& column_sums,
                      const Positives& positives, int threads) {
  const int64_t step = std::clamp<int64_t>(kChunk / tile.columns, 1, kMostRows);
  const int64_t chunks = (tile.rows + step - 1) / step;
  const size_t each = Scratch::round_up(sizeof(A) * static_cast<size_t>(tile.columns) + kApart);
  const Scratch memory(4 * each * static_cast<size_t>(chunks));
  std::vector<ColumnParts<A>> parts;
  for (int64_t c = 0; c < chunks; ++c) {
    const auto at = [&](size_t k) {
      return reinterpret_cast<A*>(memory.data() + (4 * static_cast<size_t>(c) + k) * each);
    };
    parts.push_back({at(0), at(1), at(2), at(3)});
  }
  parallel_for(chunks, threads, sizeof(A) * static_cast<size_t>(step), [&](int64_t c, char* scratch) {
    const int64_t first = c * step, end = std::min(tile.rows, first + step);
    A* const row_max = reinterpret_cast<A*>(scratch);
    const ColumnParts<A>& own = parts[static_cast<size_t>(c)];
    if (positives.row_labels != nullptr) {
      add_chunk<Tags::kLabels>(tile, row_sums, positives, first, end, row_max, own);
    } else if (positives.column_targets != nullptr) {
      add_chunk<Tags::kColumnTargets>(tile, row_sums, positives, first, end, row_max, own);
    } else {
      add_chunk<Tags::kNone>(tile, row_sums, positives, first, end, row_max, own);
    }
  });
  merge_columns(tile, column_sums, positives, parts.data(), chunks, threads);
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
