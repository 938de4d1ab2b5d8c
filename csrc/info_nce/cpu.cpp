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
constexpr int64_t kSquare = 32;      // rows and columns that are transposed at a time

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
  // f(first, end) for pieces of at most kFlush elements.
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

// A row's positives: the sum of their products, and how many they are. The sum is in fp64, which holds what fp32
// products have in common beside what they differ by.
struct Wanted {
  double sum = 0;
  int64_t count = 0;
};

template <typename A>
Wanted positive_products(const Row<A>& row, const ProductTile& tile, const Positives& positives) {
  Wanted found;
  if (positives.row_targets != nullptr) {
    const A* const target = row.at(positives.row_targets[row.place], tile);
    if (target != nullptr) found = {static_cast<double>(*target), 1};
  } else if (positives.row_labels != nullptr) {
    const int32_t own = positives.row_labels[row.place];
    const int32_t* __restrict labels = positives.column_labels + tile.first_column;
    row.pieces([&](int64_t first, int64_t end) {
      const A* __restrict x = row.x;
      double s = 0;
      int32_t n = 0;
#pragma omp simd reduction(+ : s, n)
      for (int64_t j = first; j < end; ++j) {
        s += static_cast<double>(labels[j] == own ? x[j] : A(0));
        n += labels[j] == own;
      }
      found.sum += s;
      found.count += n;
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
    sums.positive[row.place] += positive_products(row, tile, positives).sum;
    const A max = largest(row);
    double sum = 0;
    row.pieces([&](int64_t first, int64_t end) {
      const A* __restrict x = row.x;
      A s = 0;
#pragma omp simd reduction(+ : s)
      for (int64_t j = first; j < end; ++j) s += exp_below_one((x[j] - max) * scale);
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

// Of a chunk of a tile's rows, what Sums are of the tile: of each column. Positives are summed in fp64, see Wanted.
template <typename A>
struct ColumnParts {
  A* max;
  A* sum;
  double* positive;
};

// The first look at a row: its largest product, those of the columns, and the positives of both.
template <Tags kTags, typename A>
A look(const Row<A>& row, const ProductTile& tile, const Positives& positives, int64_t i, const ColumnParts<A>& parts,
       double* positive) {
  const int32_t own = row_tag<kTags>(tile, positives, i);
  const int32_t* __restrict tags = column_tags<kTags>(tile, positives);
  A best = std::numeric_limits<A>::lowest();
  row.pieces([&](int64_t first, int64_t end) {
    const A* __restrict x = row.x;
    A* __restrict maxima = parts.max;
    double* __restrict wanted = parts.positive;
    A m = best;
    double s = 0;
#pragma omp simd reduction(max : m) reduction(+ : s)
    for (int64_t j = first; j < end; ++j) {
      m = x[j] > m ? x[j] : m;
      maxima[j] = x[j] > maxima[j] ? x[j] : maxima[j];
      if constexpr (kTags != Tags::kNone) {
        const double common = static_cast<double>(tags[j] == own ? x[j] : A(0));
        wanted[j] += common;
        if constexpr (kTags == Tags::kLabels) s += common;
      }
    }
    best = m;
    *positive += s;
  });
  return best;
}

// The second: the row's sum, and what the row adds to those of the columns.
template <typename A>
double add_exps(const Row<A>& row, A max, A scale, const ColumnParts<A>& parts) {
  double sum = 0;
  row.pieces([&](int64_t first, int64_t end) {
    const A* __restrict x = row.x;
    const A* __restrict maxima = parts.max;
    A* __restrict sums = parts.sum;
    A s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t j = first; j < end; ++j) {
      s += exp_below_one((x[j] - max) * scale);
      sums[j] += exp_below_one((x[j] - maxima[j]) * scale);
    }
    sum += static_cast<double>(s);
  });
  return sum;
}

template <Tags kTags, typename A>
void add_chunk(const ProductTile& tile, const Sums& row_sums, const Positives& positives, int64_t first, int64_t end,
               A* row_max, const ColumnParts<A>& parts) {
  std::fill_n(parts.max, tile.columns, std::numeric_limits<A>::lowest());
  std::fill_n(parts.sum, tile.columns, A(0));
  std::fill_n(parts.positive, tile.columns, 0.0);
  for (int64_t i = first; i < end; ++i) {
    const Row<A> row(tile, i);
    double positive = 0;
    row_max[i - first] = look<kTags>(row, tile, positives, i, parts, &positive);
    const A* const target = positives.row_targets == nullptr ? nullptr : row.at(positives.row_targets[row.place], tile);
    row_sums.positive[row.place] += target == nullptr ? positive : static_cast<double>(*target);
  }
  for (int64_t i = first; i < end; ++i) {
    const Row<A> row(tile, i);
    const double sum = add_exps(row, row_max[i - first], static_cast<A>(tile.scale), parts);
    merge(row_sums, row.place, static_cast<double>(row_max[i - first]), sum, tile.scale);
  }
}

// All chunks' parts, in their order.
template <typename A>
void merge_columns(const ProductTile& tile, const Sums& sums, const ColumnParts<A>* parts, int64_t chunks,
                   int threads) {
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
      const double* __restrict wanted = parts[c].positive + first;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        sum[j] += static_cast<double>(part[j]) * exp_below_one((static_cast<double>(largest[j]) - max[j]) * tile.scale);
        positive[j] += wanted[j];
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
  const size_t each = Scratch::round_up(sizeof(A) * static_cast<size_t>(tile.columns));
  const size_t of_chunk = 2 * each + Scratch::round_up(sizeof(double) * static_cast<size_t>(tile.columns));
  const Scratch memory(of_chunk * static_cast<size_t>(chunks));
  std::vector<ColumnParts<A>> parts;
  for (int64_t c = 0; c < chunks; ++c) {
    char* const own = memory.data() + static_cast<size_t>(c) * of_chunk;
    parts.push_back(
        {reinterpret_cast<A*>(own), reinterpret_cast<A*>(own + each), reinterpret_cast<double*>(own + 2 * each)});
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
  merge_columns(tile, column_sums, parts.data(), chunks, threads);
}

template <typename A>
void whole_rows(const ProductTile& tile, const Sums& sums, const Positives& positives, const Side& side, double* dscale,
                int threads) {
  const A scale = static_cast<A>(tile.scale);
  parallel_for(tile.rows, threads, 0, [&](int64_t i, char*) {
    const Row<A> row(tile, i);
    if (row.skipped >= 0) row.x[row.skipped] = A(0);
    const A* const target = positives.row_targets == nullptr ? nullptr : row.at(positives.row_targets[row.place], tile);
    const Wanted positive = positive_products(row, tile, positives);
    const A max = largest(row);
    double sum = 0, weighted = 0;  // of exp(d), and of d exp(d), with d = scale * (product - max)
    row.pieces([&](int64_t first, int64_t end) {
      A* __restrict x = row.x;
      A s = 0, w = 0;
#pragma omp simd reduction(+ : s, w)
      for (int64_t j = first; j < end; ++j) {
        const A d = (x[j] - max) * scale;
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
    sums.positive[row.place] = positive.sum;
    const A share = static_cast<const A*>(side.weight)[row.place];
    const A wanted = static_cast<const A*>(side.wanted)[row.place] * scale;
    const A factor = share == A(0) ? A(0) : static_cast<A>(static_cast<double>(share) / sum) * scale;
    const bool labelled = positives.row_labels != nullptr;
    const int32_t own = labelled ? positives.row_labels[row.place] : 0;
    const int32_t* __restrict labels = labelled ? positives.column_labels + tile.first_column : nullptr;
    row.pieces([&](int64_t first, int64_t end) {
      A* __restrict x = row.x;
      if (labelled) {
#pragma omp simd
        for (int64_t j = first; j < end; ++j) x[j] = x[j] * factor - (labels[j] == own ? wanted : A(0));
      } else {
#pragma omp simd
        for (int64_t j = first; j < end; ++j) x[j] *= factor;
      }
    });
    if (target != nullptr) row.x[target - row.x] -= wanted;
    // Beside the largest, the sum of p * d is weighted / sum; the positives weigh wanted each.
    const double lacks = positive.sum - static_cast<double>(positive.count) * static_cast<double>(max);
    const double all = static_cast<double>(share) * (weighted / sum);
    dscale[row.place] += share == A(0) ? 0 : (all - static_cast<double>(wanted) * lacks) * tile.scale;
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
    const A weight = static_cast<const A*>(row_side.weight)[row.place] * scale;
    const A wanted = static_cast<const A*>(row_side.wanted)[row.place] * scale;
    const A* const target = positives.row_targets == nullptr ? nullptr : row.at(positives.row_targets[row.place], tile);
    const A target_product = target == nullptr ? A(0) : *target;
    const int32_t own = row_tag<kTags>(tile, positives, i);
    const int32_t* __restrict tags = column_tags<kTags>(tile, positives);
    double sum = 0;
    row.pieces([&](int64_t first, int64_t end) {
      A* __restrict x = row.x;
      const A* __restrict maxima = kColumns ? of_columns(column_side.max) : nullptr;
      const A* __restrict weights = kColumns ? of_columns(column_side.weight) : nullptr;
      const A* __restrict all_wanted = kColumns ? of_columns(column_side.wanted) : nullptr;
      A s = 0;
#pragma omp simd reduction(+ : s)
      for (int64_t j = first; j < end; ++j) {
        const bool positive = kTags != Tags::kNone && tags[j] == own;
        const A of_row = (x[j] - max) * scale;
        A g = weight * exp_below_one(of_row);
        if constexpr (kTags == Tags::kLabels) g -= positive ? wanted : A(0);
        s += g * of_row;
        if constexpr (kColumns) {
          const A of_column = (x[j] - maxima[j]) * scale;
          A other = scale * weights[j] * exp_below_one(of_column);
          if constexpr (kTags != Tags::kNone) other -= positive ? scale * all_wanted[j] : A(0);
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
                   void* weight, void* wanted, DType dtype) {
  choose(dtype, [&](auto* type) {
    using A = std::remove_pointer_t<decltype(type)>;
    int64_t counted = 0;
    for (int64_t i = 0; i < n; ++i) counted += count[i] > 0;
    const double rows = mean ? static_cast<double>(std::max<int64_t>(counted, 1)) : 1.0;
    const A* const sums = kept == nullptr ? nullptr : static_cast<const A*>(kept) + n;
    for (int64_t i = 0; i < n; ++i) {
      const double own = count[i] > 0 ? dloss[i * stride] / rows : 0.0;
      static_cast<A*>(weight)[i] = static_cast<A>(sums == nullptr ? own : own / static_cast<double>(sums[i]));
      static_cast<A*>(wanted)[i] = static_cast<A>(own / static_cast<double>(std::max<int64_t>(count[i], 1)));
    }
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
