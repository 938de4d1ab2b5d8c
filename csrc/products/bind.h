// Products on the matrix units as Python calls them. Without them every function throws: see isa().
#pragma once

#include <tuple>

#include "common/isa.h"
#include "common/pyview.h"
#include "products/op.h"

namespace cpl::bind {

// address, rows, columns, row stride, column stride
using PlainArgs = std::tuple<Address, int64_t, int64_t, int64_t, int64_t>;
// address, steps of a panel, pieces
using PackedArgs = std::tuple<Address, int64_t, int>;

inline products::Plain plain(const PlainArgs& args) {
  const auto& [data, rows, columns, row_stride, column_stride] = args;
  return {static_cast<const float*>(pointer(data)), rows, columns, row_stride, column_stride};
}

#if defined(CPL_WITH_AMX)
inline void need_units() {
  if (active_isa() != Isa::kAmx) throw std::runtime_error("this process does not use matrix units");
}

inline int64_t products_packed_bytes(int64_t rows, int64_t columns, int pieces) {
  return products::packed_bytes(rows, columns, pieces);
}

inline bool products_pack(PlainArgs right, int pieces, Address packed, int threads) {
  need_units();
  return products::pack(plain(right), pieces, pointer(packed), threads);
}

inline bool products_have_pieces(PlainArgs matrix, int threads) {
  need_units();
  return products::has_pieces(plain(matrix), threads);
}

inline products::Packed packed(const PackedArgs& args) {
  const auto& [data, steps, pieces] = args;
  return {pointer(data), steps, pieces};
}

inline void products_multiply(Address out, int64_t stride, bool add, PlainArgs left, PackedArgs right, int64_t columns,
                              bool above_diagonal, int threads) {
  need_units();
  const products::Result result{static_cast<float*>(pointer(out)), stride, columns};
  products::multiply(result, add, plain(left), packed(right), above_diagonal, {}, threads);
}
#endif

}  // namespace cpl::bind
