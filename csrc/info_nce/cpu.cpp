// info_nce on CPU: what is done to a tile of products. Compiled once per instruction set.
//
// A row, a chunk of rows, or a strip of columns is one work item, and what it sums it sums in an order that depends on
// the tile alone: fp32 side by side for at most kFlush terms, fp64 beyond.
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

template <typename A>
void whole_rows(const ProductTile& tile, const Sums& sums, const Positives& positives, const Side& side, double* dscale,
                int threads) {
  const A scale = static_cast<A>(tile.scale);
  parallel_for(tile.rows, threads, 0, [&](int64_t i, char*) {
    const Row<A> row(tile, i);
    if (row.skipped >= 0) row.x[row.skipped] = A(0);
    const A* const target = positives.row_targets == nullptr ? nullptr : row.at(positives.row_targets[row.place], tile);
    const A max = largest(row);
    const Wanted positive = positives_of_row(row, max, tile, positives);
    double sum = 0, weighted = 0;  // of exp(d), and of d exp(d), with d = scale * (product - max)
    row.pieces([&](int64_t first, int64_t end) {
      A* __restrict x = row.x;
      const A top = max, unit = scale;
      A s = 0, w = 0;
#pragma omp simd reduction(+ : s, w)
      for (int64_t j = first; j < end; ++j) {
        const A d = (x[j] - top) * unit;
        const A e = exp_below_one(d);
        x[j] = e;
        s += e;
        w += e > A(0) ? e * d : e;  // d may be -inf where e is 0
      }
      sum += static_cast<double>(s);
      weighted += static_cast<double>(w);
    });
    sums.max[row.place] = static_cast<double>(max);
    sums.sum[row.place] = sum;
    sums.positive[row.place] = positive.products(static_cast<double>(max));
    const A share = static_cast<const A*>(side.weight)[row.place];
    const A wanted = static_cast<const A*>(side.wanted)[row.place];
    const A factor = share == A(0) ? A(0) : static_cast<A>(static_cast<double>(share) / sum);
    const bool labelled = positives.row_labels != nullptr;
    const int32_t own = labelled ? positives.row_labels[row.place] : 0;
    row.pieces([&](int64_t first, int64_t end) {
      A* __restrict x = row.x;
      if (labelled) {
        const int32_t* __restrict labels = positives.column_labels + tile.first_column;
        const int32_t mine = own;
        const A times = factor, less = wanted;
#pragma omp simd
        for (int64_t j = first; j < end; ++j) x[j] = x[j] * times - (labels[j] == mine ? less : A(0));
      } else {
#pragma omp simd
        for (int64_t j = first; j < end; ++j) x[j] *= factor;
      }
    });
    if (target != nullptr) row.x[target - row.x] -= wanted;
    // Beside the largest, the sum of p * d is weighted / sum; the positives weigh wanted each.
    const double all = static_cast<double>(share) * (weighted / sum);
    dscale[row.place] += share == A(0) ? 0 : all + static_cast<double>(wanted) * positive.lack * tile.scale;
  });
}

template <Tags kTags, bool kColumns, typename A>
void gradient(const ProductTile& tile, const Positives& positives, const Side& row_side, const Side& column_side,
              double* dscale, int threads) {
  const A scale = static_cast<A>(tile.scale);
  const auto of_columns = [&](const void* data) { return static_cast<const A*>(data) + tile.first_column; };
  parallel_for(tile.rows, threads, 0, [&](int64_t i, char*) {
    const Row<A> row(tile, i);
    const A max = static_cast<const A*>(row_side.max)[row.place];
    const A weight = static_cast<const A*>(row_side.weight)[row.place];
    const A wanted = static_cast<const A*>(row_side.wanted)[row.place];
    const A* const target = positives.row_targets == nullptr ? nullptr : row.at(positives.row_targets[row.place], tile);
    const A target_product = target == nullptr ? A(0) : *target;
    double sum = 0;
    row.pieces([&](int64_t first, int64_t end) {
      A* __restrict x = row.x;
      const int32_t own = row_tag<kTags>(tile, positives, i);
      const int32_t* __restrict tags = column_tags<kTags>(tile, positives);
      const A top = max, of_one = weight, less = wanted, unit = scale;
      const A* __restrict maxima = kColumns ? of_columns(column_side.max) : nullptr;
      const A* __restrict weights = kColumns ? of_columns(column_side.weight) : nullptr;
      const A* __restrict all_wanted = kColumns ? of_columns(column_side.wanted) : nullptr;
      A s = 0;
#pragma omp simd reduction(+ : s)
      for (int64_t j = first; j < end; ++j) {
        const A of_row = (x[j] - top) * unit;
        A g = of_one * exp_below_one(of_row);
        if constexpr (kTags == Tags::kLabels) g -= tags[j] == own ? less : A(0);
        s += g * of_row;
        if constexpr (kColumns) {
          const A of_column = (x[j] - maxima[j]) * unit;
          A other = weights[j] * exp_below_one(of_column);
          if constexpr (kTags != Tags::kNone) other -= tags[j] == own ? all_wanted[j] : A(0);
          s += other * of_column;
          g += other;
        }
        x[j] = g;
      }
      sum += static_cast<double>(s);
    });
    if (row.skipped >= 0) row.x[row.skipped] = A(0);
    if (target != nullptr) {
      row.x[target - row.x] -= wanted;
      sum -= static_cast<double>(wanted * ((target_product - max) * scale));
    }
    dscale[row.place] += sum;
  });
}

template <bool kColumns, typename A>
void gradient_of(const ProductTile& tile, const Positives& positives, const Side& row_side, const Side& column_side,
                 double* dscale, int threads) {
  if (positives.row_labels != nullptr) {
    gradient<Tags::kLabels, kColumns, A>(tile, positives, row_side, column_side, dscale, threads);
  } else if (kColumns && positives.column_targets != nullptr) {
    gradient<Tags::kColumnTargets, kColumns, A>(tile, positives, row_side, column_side, dscale, threads);
  } else {
    gradient<Tags::kNone, kColumns, A>(tile, positives, row_side, column_side, dscale, threads);
  }
}

template <typename A>
void finish(const Sums& sums, const int64_t* count, int64_t n, double scale, A* kept, double* losses, int threads) {
  parallel_for((n + kFlush - 1) / kFlush, threads, 0, [&](int64_t piece, char*) {
    for (int64_t i = piece * kFlush; i < std::min(n, (piece + 1) * kFlush); ++i) {
      const double wanted = static_cast<double>(std::max<int64_t>(count[i], 1));
      kept[i] = static_cast<A>(sums.max[i]);
      kept[n + i] = count[i] > 0 ? static_cast<A>(sums.sum[i]) : std::numeric_limits<A>::infinity();
      // What the products have in common cancels before anything is rounded.
      const double lacks = (sums.max[i] * wanted - sums.positive[i]) / wanted;
      losses[i] = count[i] > 0 ? std::log(sums.sum[i]) + lacks * scale : 0.0;
    }
  });
}

// f(a null pointer of the type of the products)
template <typename F>
void choose(DType dtype, const F& f) {
  if (dtype == DType::kFloat64) return f(static_cast<double*>(nullptr));
  if (dtype == DType::kFloat32) return f(static_cast<float*>(nullptr));
  throw std::invalid_argument("info_nce: products are fp32 or fp64");
}

}  // namespace

void info_nce_mirror(void* data, int64_t rows, int64_t stride, DType dtype, int threads) {
  choose(dtype, [&](auto* type) { mirror(static_cast<decltype(type)>(data), rows, stride, threads); });
}

void info_nce_rows(const ProductTile& tile, const Sums& sums, const Positives& positives, int threads) {
  choose(tile.dtype, [&](auto* type) { rows<std::remove_pointer_t<decltype(type)>>(tile, sums, positives, threads); });
}

void info_nce_rows_and_columns(const ProductTile& tile, const Sums& rows, const Sums& columns,
                               const Positives& positives, int threads) {
  choose(tile.dtype, [&](auto* type) {
    rows_and_columns<std::remove_pointer_t<decltype(type)>>(tile, rows, columns, positives, threads);
  });
}

void info_nce_whole_rows(const ProductTile& tile, const Sums& sums, const Positives& positives, const Side& rows,
                         double* dscale, int threads) {
  choose(tile.dtype, [&](auto* type) {
    whole_rows<std::remove_pointer_t<decltype(type)>>(tile, sums, positives, rows, dscale, threads);
  });
}

void info_nce_gradient(const ProductTile& tile, const Positives& positives, const Side& rows, const Side& columns,
                       double* dscale, int threads) {
  choose(tile.dtype, [&](auto* type) {
    using A = std::remove_pointer_t<decltype(type)>;
    if (columns.max != nullptr) return gradient_of<true, A>(tile, positives, rows, columns, dscale, threads);
    gradient_of<false, A>(tile, positives, rows, columns, dscale, threads);
  });
}

void info_nce_finish(const Sums& sums, const int64_t* count, int64_t n, double scale, void* kept, DType dtype,
                     double* losses, int threads) {
  choose(dtype, [&](auto* type) { finish(sums, count, n, scale, static_cast<decltype(type)>(kept), losses, threads); });
}

double info_nce_reduce(const double* losses, const int64_t* count, int64_t n, bool mean) {
  double sum = 0;
  int64_t counted = 0;
  for (int64_t first = 0; first < n; first += kFlush) {
    const int64_t end = std::min(n, first + kFlush);
    double part = 0;
#pragma omp simd reduction(+ : part, counted)
    for (int64_t i = first; i < end; ++i) {
      part += losses[i];
      counted += count[i] > 0;
    }
    sum += part;
  }
  return mean ? sum / static_cast<double>(std::max<int64_t>(counted, 1)) : sum;
}

void info_nce_side(const void* kept, const double* dloss, int64_t stride, const int64_t* count, int64_t n, bool mean,
                   double scale, void* weight, void* wanted, DType dtype) {
  choose(dtype, [&](auto* type) {
    using A = std::remove_pointer_t<decltype(type)>;
    int64_t counted = 0;
    for (int64_t i = 0; i < n; ++i) counted += count[i] > 0;
    const double rows = mean ? static_cast<double>(std::max<int64_t>(counted, 1)) : 1.0;
    const A* const sums = kept == nullptr ? nullptr : static_cast<const A*>(kept) + n;
    for (int64_t i = 0; i < n; ++i) {
      const double own = count[i] > 0 ? dloss[i * stride] / rows * scale : 0.0;
      static_cast<A*>(weight)[i] = static_cast<A>(sums == nullptr ? own : own / static_cast<double>(sums[i]));
      static_cast<A*>(wanted)[i] = static_cast<A>(own / static_cast<double>(std::max<int64_t>(count[i], 1)));
    }
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
