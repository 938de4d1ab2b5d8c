// info_nce: what its kernels are called with. Nothing of the size of the whole matrix is ever there.
//
// On a CPU Python multiplies a tile of queries by a tile of keys (torch's GEMM, or products/), and the kernels do the
// rest of the work on the tile of products while it is in cache. On CUDA the kernels multiply as well.
#pragma once

#include "common/dtype.h"
#include "common/isa.h"

namespace cpl {

// Products <query, key> of neighbouring queries and keys. A logit is a product times scale.
struct ProductTile {
  void* data;  // [rows, columns], fp32 or fp64, the columns of a row side by side
  int64_t rows;
  int64_t columns;
  int64_t stride;     // from one row to the next
  int64_t first_row;  // places of the first query and the first key: all arrays below begin at 0
  int64_t first_column;
  bool without_diagonal;  // the keys are the queries, and none is compared with itself
  double scale;           // 1 / temperature
  DType dtype;
};

// What is known of each row (or column) from the tiles seen so far, in products: scale comes last, so that what is
// equal cancels exactly. sum = sum of exp(scale * (product - max)).
struct Sums {
  double* max;       // -inf where none was seen
  double* sum;       // 0 at first
  double* positive;  // sum of the products of its positives, 0 at first
};

// Which pairs are positive: by place or by label, whichever is not null. No place or label of a pair that is none
// is equal: -1 for a row and -2 for a column.
struct Positives {
  const int32_t* row_targets;     // the column of the row's positive
  const int32_t* column_targets;  // the row of the column's positive
  const int32_t* row_labels;
  const int32_t* column_labels;
};

// One side of a gradient: with weight the share of row i in the result by its sum of exponentials (0: it does not
// count),
//   d loss / d logit = weight * exp(scale * (product - max)) - (wanted if the pair is positive), both times scale.
// The arrays are of the tile's dtype.
struct Side {
  const void* max;
  const void* weight;
  const void* wanted;
};

// Of a square of products of vectors with themselves: what is below the diagonal from what is above it.
CPL_DECLARE_PER_ISA(void info_nce_mirror(void* data, int64_t rows, int64_t stride, DType dtype, int threads))

// Adds a tile to the sums of its rows, or of its rows and its columns.
CPL_DECLARE_PER_ISA(void info_nce_rows(const ProductTile& tile, const Sums& sums, const Positives& positives,
                                       int threads))
CPL_DECLARE_PER_ISA(void info_nce_rows_and_columns(const ProductTile& tile, const Sums& rows, const Sums& columns,
                                                   const Positives& positives, int threads))

// For a tile that holds its rows whole: their sums, and the gradient of the loss by the products over the products.
// dscale: to it is added, for each row, the sum of gradient * (product - max) * scale: as the gradients of a row add up
// to 0, max makes no difference but to the rounding. The side is that of the rows: max is not read, and weight is the
// share times scale alone.
CPL_DECLARE_PER_ISA(void info_nce_whole_rows(const ProductTile& tile, const Sums& sums, const Positives& positives,
                                             const Side& rows, double* dscale, int threads))

// The gradient by the products over the products. columns.max may be null: one direction. dscale: as above, with what
// is of the columns' loss beside their own max.
CPL_DECLARE_PER_ISA(void info_nce_gradient(const ProductTile& tile, const Positives& positives, const Side& rows,
                                           const Side& columns, double* dscale, int threads))

// Of n rows (or columns) whose sums are complete: kept, [2, n] (max, sum) in the dtype given, the sum +inf where count
// is 0; and loss, 0 there.
CPL_DECLARE_PER_ISA(void info_nce_finish(const Sums& sums, const int64_t* count, int64_t n, double scale, void* kept,
                                         DType dtype, double* losses, int threads))

// Of those losses whose count is not 0 the sum, or the mean (0 where there are none).
CPL_DECLARE_PER_ISA(double info_nce_reduce(const double* losses, const int64_t* count, int64_t n, bool mean))

// The weight and wanted of Side, for n rows of `count` positives. kept: as info_nce_finish made it; if it is null,
// weight is the share alone. dloss: of the result, or of each row (stride 1).
CPL_DECLARE_PER_ISA(void info_nce_side(const void* kept, const double* dloss, int64_t stride, const int64_t* count,
                                       int64_t n, bool mean, double scale, void* weight, void* wanted, DType dtype))

#if defined(CPL_WITH_CUDA)
// Neighbouring queries and keys, all of whose pairs make up a tile. A logit is a product divided by the temperature,
// NaN if that is not positive.
struct PairTile {
  const void* query;        // [.., features], in one piece
  const void* key;          // [.., features], in one piece
  const void* temperature;  // one number, fp32 (fp64 for fp64 vectors), as are scratch memory, sides and gradients
  int64_t features;
  int64_t first_row;  // places of the first query and the first key: all arrays but the gradient begin at 0
  int64_t rows;
  int64_t first_column;
  int64_t columns;
  bool without_diagonal;  // the keys are the queries, and none is compared with itself
  DType dtype;
};

namespace cuda {
// Elements of the scratch buffer of a call, of either kind.
int64_t info_nce_scratch(int64_t rows, int64_t columns);

// Adds a tile to the sums of its rows and, unless columns.max is null, of its columns.
void info_nce_sums(const PairTile& tile, const Positives& positives, const Sums& rows, const Sums& columns,
                   void* scratch, void* stream);

// gradient: [rows, columns] of the tile, by the products. columns.max may be null: one direction. dscale: to it is
// added, for each row, what info_nce_gradient above adds.
void info_nce_gradient(const PairTile& tile, const Positives& positives, const Side& rows, const Side& columns,
                       void* gradient, double* dscale, void* scratch, void* stream);
}  // namespace cuda
#endif

}  // namespace cpl
