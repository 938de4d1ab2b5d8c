// info_nce as Python calls it.
#pragma once

#include <tuple>

#include "common/pyview.h"
#include "info_nce/op.h"

namespace cpl::bind {

// address, rows, columns, row stride, first row, first column, without the diagonal, scale, dtype
using ProductTileArgs = std::tuple<Address, int64_t, int64_t, int64_t, int64_t, int64_t, bool, double, int>;
// address of [3, n] (max, sum, positive), n
using SumsArgs = std::tuple<Address, int64_t>;
// row targets, column targets, row labels, column labels
using PositivesArgs = std::tuple<Address, Address, Address, Address>;
// lse, share, wanted
using SideArgs = std::tuple<Address, Address, Address>;

inline ProductTile product_tile(const ProductTileArgs& args) {
  const auto& [data, rows, columns, stride, first_row, first_column, without_diagonal, scale, dtype] = args;
  return {pointer(data),    rows,      columns,
          stride,           first_row, first_column,
          without_diagonal, scale,     static_cast<DType>(dtype)};
}

inline Sums sums_of(const SumsArgs& args) {
  double* const base = static_cast<double*>(pointer(std::get<0>(args)));
  const int64_t n = std::get<1>(args);
  return {base, base + n, base + 2 * n};
}

inline Positives positives_of(const PositivesArgs& args) {
  const auto places = [](Address address) { return static_cast<const int32_t*>(pointer(address)); };
  const auto& [row_targets, column_targets, row_labels, column_labels] = args;
  return {places(row_targets), places(column_targets), places(row_labels), places(column_labels)};
}

inline Side side_of(const SideArgs& args) {
  const auto& [lse, share, wanted] = args;
  return {pointer(lse), pointer(share), pointer(wanted)};
}

inline void info_nce_rows(ProductTileArgs tile, SumsArgs sums, PositivesArgs positives, int threads) {
  CPL_CALL_ISA(info_nce_rows(product_tile(tile), sums_of(sums), positives_of(positives), threads));
}

inline void info_nce_columns(ProductTileArgs tile, SumsArgs sums, PositivesArgs positives, int threads) {
  CPL_CALL_ISA(info_nce_columns(product_tile(tile), sums_of(sums), positives_of(positives), threads));
}

inline void info_nce_whole_rows(ProductTileArgs tile, SumsArgs sums, PositivesArgs positives, SideArgs rows,
                                Address dscale, int threads) {
  CPL_CALL_ISA(info_nce_whole_rows(product_tile(tile), sums_of(sums), positives_of(positives), side_of(rows),
                                   static_cast<double*>(pointer(dscale)), threads));
}

inline void info_nce_gradient(ProductTileArgs tile, PositivesArgs positives, SideArgs rows, SideArgs columns,
                              Address dscale, int threads) {
  CPL_CALL_ISA(info_nce_gradient(product_tile(tile), positives_of(positives), side_of(rows), side_of(columns),
                                 static_cast<double*>(pointer(dscale)), threads));
}

}  // namespace cpl::bind
