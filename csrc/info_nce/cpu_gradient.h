// The gradients of a tile's products: after a sweep that summed, or, where a row is whole, at once.
#pragma once

#include "info_nce/cpu_sums.h"

namespace cpl {
namespace CPL_ISA {
namespace {

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

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
