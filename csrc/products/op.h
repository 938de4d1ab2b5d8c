// Products of matrices on the matrix units of a processor that has them (AMX, Intel since Sapphire Rapids).
//
// A unit multiplies bf16 numbers, exactly, and adds in fp32. An fp32 number is the sum of three bf16 numbers, eight
// binary digits each: x = h + m + l. So a product of fp32 matrices is that of
//
//   h h' + (h m' + m h') + (h l' + m m' + l h')
//
// and what is left out, m l' and less, is at most 2^-24 of |x| |x'| (from the digits' counts: |m| <= 2^-9 |x|,
// |l| <= 2^-18 |x|). Six products of sixteen times the speed; the sums have fp32's rounding and, 32 terms at a time,
// fewer of them than a chain of multiplications and additions. Numbers below 2^-110 lose digits: what is below 2^-126
// is 0 to the unit.
//
// A NaN, and a number not below 2^63, have no pieces here: of others no product is infinite where theirs is not.
#pragma once

#include <cstdint>
#include <functional>

namespace cpl::products {

// A matrix as it came: one of the strides is 1.
struct Plain {
  const float* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;  // in elements
  int64_t column_stride;
};

// A right factor in pieces. Panels of 32 columns; of each, steps of 32 rows; of each, two halves of 16 columns; of
// each, the pieces, the largest first; of each, a tile of 1 KiB: the pairs of rows, and of each pair 16 times two
// numbers.
struct Packed {
  const void* data;
  int64_t steps;  // of a panel, in memory: of a part of the rows it is not the part's
  int pieces;     // 3, or 1: numbers rounded to bf16
};

int64_t packed_bytes(int64_t rows, int64_t columns, int pieces);

// Whether this process may use the units: they must be there, and the system must grant their registers.
bool available();

// The whole of `right` into `packed`, 64-byte aligned. False: it has no pieces, and `packed` is of no use.
bool pack(const Plain& right, int pieces, void* packed, int threads);

// Whether all of a matrix has pieces.
bool has_pieces(const Plain& matrix, int threads);

// Rows of results that are complete, while they are in the L2 cache: [end - first, columns], a thread's own.
using Rows = std::function<void(float* rows, int64_t stride, int64_t first, int64_t end)>;

struct Result {
  float* data;  // [rows, columns], its columns side by side; null: kept no longer than `then` takes
  int64_t stride;
  int64_t columns;
};

// out = left right, or out += left right. The right factor has as many rows as left has columns. A row of left in
// which a number has no pieces is of no use.
//
// above_diagonal: 32 x 32 blocks wholly below out's diagonal are left as they are. then: called for rows, any thread's,
// when they are complete; it may change them. It may be empty; where it is not, there must be terms to sum.
void multiply(const Result& out, bool add, const Plain& left, const Packed& right, bool above_diagonal,
              const Rows& then, int threads);

}  // namespace cpl::products
