// info_nce as Python calls it.
#pragma once

#include <algorithm>
#include <tuple>

#include "common/pyview.h"
#include "info_nce/op.h"
#include "products/bind.h"

namespace cpl::bind {

// address, rows, columns, row stride, first row, first column, without the diagonal, scale, dtype
using ProductTileArgs = std::tuple<Address, int64_t, int64_t, int64_t, int64_t, int64_t, bool, double, int>;
// address of [3, n] (max, sum, positive), n
using SumsArgs = std::tuple<Address, int64_t>;
// row targets, column targets, row labels, column labels
using PositivesArgs = std::tuple<Address, Address, Address, Address>;
// max, weight, wanted
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
  const auto& [max, weight, wanted] = args;
  return {pointer(max), pointer(weight), pointer(wanted)};
}

inline void info_nce_mirror(Address data, int64_t rows, int64_t stride, int dtype, int threads) {
  CPL_CALL_ISA(info_nce_mirror(pointer(data), rows, stride, static_cast<DType>(dtype), threads));
}

inline void rows_of(const ProductTile& tile, const Sums& sums, const Positives& positives, int threads) {
  CPL_CALL_ISA(info_nce_rows(tile, sums, positives, threads));
}

inline void whole_rows_of(const ProductTile& tile, const Sums& sums, const Positives& positives, const Side& rows,
                          double* dscale, int threads) {
  CPL_CALL_ISA(info_nce_whole_rows(tile, sums, positives, rows, dscale, threads));
}

inline void gradient_of(const ProductTile& tile, const Positives& positives, const Side& rows, const Side& columns,
                        double* dscale, int threads) {
  CPL_CALL_ISA(info_nce_gradient(tile, positives, rows, columns, dscale, threads));
}

inline void info_nce_rows(ProductTileArgs tile, SumsArgs sums, PositivesArgs positives, int threads) {
  rows_of(product_tile(tile), sums_of(sums), positives_of(positives), threads);
}

inline void info_nce_rows_and_columns(ProductTileArgs tile, SumsArgs rows, SumsArgs columns, PositivesArgs positives,
                                      int threads) {
  CPL_CALL_ISA(
      info_nce_rows_and_columns(product_tile(tile), sums_of(rows), sums_of(columns), positives_of(positives), threads));
}

inline void info_nce_whole_rows(ProductTileArgs tile, SumsArgs sums, PositivesArgs positives, SideArgs rows,
                                Address dscale, int threads) {
  whole_rows_of(product_tile(tile), sums_of(sums), positives_of(positives), side_of(rows),
                static_cast<double*>(pointer(dscale)), threads);
}

inline void info_nce_gradient(ProductTileArgs tile, PositivesArgs positives, SideArgs rows, SideArgs columns,
                              Address dscale, int threads) {
  gradient_of(product_tile(tile), positives_of(positives), side_of(rows), side_of(columns),
              static_cast<double*>(pointer(dscale)), threads);
}

inline void info_nce_finish(SumsArgs sums, Address count, double scale, Address kept, int dtype, Address losses,
                            int threads) {
  CPL_CALL_ISA(info_nce_finish(sums_of(sums), static_cast<const int64_t*>(pointer(count)), std::get<1>(sums), scale,
                               pointer(kept), static_cast<DType>(dtype), static_cast<double*>(pointer(losses)),
                               threads));
}

inline double info_nce_reduce(Address losses, Address count, int64_t n, bool mean) {
  CPL_CALL_ISA(info_nce_reduce(static_cast<const double*>(pointer(losses)), static_cast<const int64_t*>(pointer(count)),
                               n, mean));
}

inline void info_nce_side(Address kept, Address dloss, int64_t stride, Address count, int64_t n, bool mean,
                          double scale, Address weight, Address wanted, int dtype) {
  CPL_CALL_ISA(info_nce_side(pointer(kept), static_cast<const double*>(pointer(dloss)), stride,
                             static_cast<const int64_t*>(pointer(count)), n, mean, scale, pointer(weight),
                             pointer(wanted), static_cast<DType>(dtype)));
}

#if defined(CPL_WITH_AMX)
// Multiplies a tile on the matrix units, and does to a block of rows of products at a time, while they are in the
// cache, what the function of the name without "multiply" does. Factors are padded, so stride is the columns' number.
template <typename Rows>
void multiply_tile(const PlainArgs& left, const PackedArgs& right, const ProductTile& tile, int threads,
                   const Rows& then) {
  need_units();
  const products::Result out{static_cast<float*>(tile.data), tile.stride, tile.stride};
  const auto part_then = [&](float* rows, int64_t stride, int64_t first, int64_t end) {
    ProductTile part = tile;
    part.data = rows;
    part.stride = stride;
    part.first_row += first;
    part.rows = std::min(end, tile.rows) - first;
    if (part.rows > 0) then(part);
  };
  products::multiply(out, false, plain(left), packed(right), false, part_then, threads);
}

// The tile's address may be 0: products are kept no longer than this takes.
inline void info_nce_multiply_rows(PlainArgs left, PackedArgs right, ProductTileArgs tile, SumsArgs sums,
                                   PositivesArgs positives, int threads) {
  multiply_tile(left, right, product_tile(tile), threads,
                [&](const ProductTile& part) { rows_of(part, sums_of(sums), positives_of(positives), 1); });
}

inline void info_nce_multiply_whole_rows(PlainArgs left, PackedArgs right, ProductTileArgs tile, SumsArgs sums,
                                         PositivesArgs positives, SideArgs rows, Address dscale, int threads) {
  multiply_tile(left, right, product_tile(tile), threads, [&](const ProductTile& part) {
    whole_rows_of(part, sums_of(sums), positives_of(positives), side_of(rows), static_cast<double*>(pointer(dscale)),
                  1);
  });
}

inline void info_nce_multiply_gradient(PlainArgs left, PackedArgs right, ProductTileArgs tile, PositivesArgs positives,
                                       SideArgs rows, SideArgs columns, Address dscale, int threads) {
  multiply_tile(left, right, product_tile(tile), threads, [&](const ProductTile& part) {
    gradient_of(part, positives_of(positives), side_of(rows), side_of(columns), static_cast<double*>(pointer(dscale)),
                1);
  });
}
#endif

#if defined(CPL_WITH_CUDA)
// addresses of query, key and temperature, features, first row, rows, first column, columns, without the diagonal,
// dtype
using PairTileArgs = std::tuple<Address, Address, Address, int64_t, int64_t, int64_t, int64_t, int64_t, bool, int>;

inline PairTile pair_tile(const PairTileArgs& args) {
  const auto& [query, key, temperature, features, first_row, rows, first_column, columns, without_diagonal, dtype] =
      args;
  return {pointer(query), pointer(key),     pointer(temperature),     features, first_row, rows, first_column,
          columns,        without_diagonal, static_cast<DType>(dtype)};
}

inline int64_t info_nce_scratch(int64_t rows, int64_t columns) { return cuda::info_nce_scratch(rows, columns); }

inline void info_nce_sums_cuda(PairTileArgs tile, PositivesArgs positives, SumsArgs rows, SumsArgs columns,
                               Address scratch, Address stream) {
  cuda::info_nce_sums(pair_tile(tile), positives_of(positives), sums_of(rows), sums_of(columns), pointer(scratch),
                      pointer(stream));
}

inline void info_nce_gradient_cuda(PairTileArgs tile, PositivesArgs positives, SideArgs rows, SideArgs columns,
                                   Address gradient, Address dscale, Address scratch, Address stream) {
  cuda::info_nce_gradient(pair_tile(tile), positives_of(positives), side_of(rows), side_of(columns), pointer(gradient),
                          static_cast<double*>(pointer(dscale)), pointer(scratch), pointer(stream));
}
#endif

}  // namespace cpl::bind
