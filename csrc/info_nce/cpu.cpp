// info_nce on CPU: what is done to a tile of products. Compiled once per instruction set.
//
// A row, a chunk of rows, or a strip of columns is one work item, and what it sums it sums in an order that depends on
// the tile alone: fp32 side by side for at most kFlush terms, fp64 beyond.
#include "info_nce/cpu_gradient.h"
#include "info_nce/cpu_sums.h"

namespace cpl {
namespace CPL_ISA {
namespace {

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
