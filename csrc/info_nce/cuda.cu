// info_nce on CUDA, in fp32 (fp64 for fp64 vectors) without tensor cores.
//
// A block multiplies a tile of queries by a tile of keys. Forward it leaves one part of the sums of each of its rows,
// and of its columns if they are wanted; a second kernel adds the parts to the sums. Backward it leaves its tile of the
// gradient, which torch multiplies by keys and queries. No atomics: the same bits every time.
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "info_nce/cuda_products.h"
#include "info_nce/math.h"
#include "info_nce/op.h"

namespace cpl::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;   // of a block of the second kernels
constexpr int kBlocks = 2;  // of a multiprocessor: left to itself ptxas aims for four, and spills for it

// What a block leaves of a row (or column): its largest product, its sum of exponentials beside that, and the sum of
// its positives' products, which is in fp64, as in op.h: its leading digits and the rest, both in the type of the
// products.
enum Part { kLargest, kTotal, kPositive, kPositiveRest, kParts };

template <typename A>
__device__ A larger(A a, A b) {
  return b > a ? b : a;  // a NaN in b is passed over here, and shows in the sum of exponentials
}

// What is taken off products before exp; 0 where nothing, or only -inf, was seen: exp(-inf - 0) is 0.
template <typename A>
__device__ A base_of(A largest) {
  return largest == static_cast<A>(-INFINITY) ? A(0) : largest;
}

// For a block's rows (or columns): their parts of the sums, from what each of kSide threads has of each.
template <typename A>
struct BlockSums {
  A (&part)[kPositive][kSide][kTile + 1];  // shared; the last dimension is odd: threads along the others write at once
  double (&positives)[kSide][kTile + 1];
  A scale;

  // Of the row `place` of the block, by `thread` of those that have pairs of it; x(n): its nth product, or -inf, and
  // positive(n): whether it counts as positive.
  template <typename X, typename P>
  __device__ void put(int thread, int place, const X& x, const P& positive) const {
    A largest = static_cast<A>(-INFINITY), total = 0;
    double of_positives = 0;
    for (int n = 0; n < kEach; ++n) largest = larger(largest, x(n));
    const A base = base_of(largest);
    for (int n = 0; n < kEach; ++n) {
      total += gpu::exp_below_one((x(n) - base) * scale);
      if (positive(n)) of_positives += static_cast<double>(x(n));
    }
    part[kLargest][thread][place] = largest;
    part[kTotal][thread][place] = total;
    positives[thread][place] = of_positives;
  }

  // target: [kParts, stride], of which `count` places from the block's first on.
  __device__ void add_up(A* target, int64_t stride, int64_t count) const {
    __syncthreads();
    const int place = threadIdx.y * kSide + threadIdx.x;
    if (place < kTile && place < count) {
      A largest = static_cast<A>(-INFINITY), total = 0;
      double of_positives = 0;
      for (int n = 0; n < kSide; ++n) largest = larger(largest, part[kLargest][n][place]);
      const A base = base_of(largest);
      for (int n = 0; n < kSide; ++n) {
        total += part[kTotal][n][place] * gpu::exp_below_one((part[kLargest][n][place] - base) * scale);
        of_positives += positives[n][place];
      }
      target[kLargest * stride + place] = largest;
      target[kTotal * stride + place] = total;
      const A leading = static_cast<A>(of_positives);
      target[kPositive * stride + place] = leading;
      target[kPositiveRest * stride + place] = static_cast<A>(of_positives - static_cast<double>(leading));
    }
  }
};

// of_rows: [blocks of columns, kParts, rows]; of_columns: [blocks of rows, kParts, columns], or null. grid: (blocks of
// columns, blocks of rows).
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads, kBlocks)
    tile_sums(PairTile tile, Positives positives, A* of_rows, A* of_columns) {
  __shared__ A part[kPositive][kSide][kTile + 1];
  __shared__ double positives_of[kSide][kTile + 1];
  const BlockSums<A> sums{part, positives_of, scale_of<A>(tile)};
  const Pairs pairs(tile);
  A product[kEach][kEach] = {};
  multiply<T>(tile, product);
  const Tags tags(positives, pairs);
#pragma unroll  // at a computed place of it, product would lie in local memory
  for (int r = 0; r < kEach; ++r) {
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      if (!pairs.compared(r, s)) product[r][s] = static_cast<A>(-INFINITY);
    }
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    sums.put(
        threadIdx.x, Pairs::row_in_block(r), [&](int s) { return product[r][s]; },
        [&](int s) { return pairs.compared(r, s) && tags.of_row(r, s); });
  }
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile, column = static_cast<int64_t>(blockIdx.x) * kTile;
  sums.add_up(of_rows + kParts * tile.rows * blockIdx.x + row, tile.rows, tile.rows - row);
  if (of_columns == nullptr) return;
  __syncthreads();  // whoever still adds up the rows must be done: the memory is used again
#pragma unroll
  for (int s = 0; s < kEach; ++s) {
    sums.put(
        threadIdx.y, Pairs::column_in_block(s), [&](int r) { return product[r][s]; },
        [&](int r) { return pairs.compared(r, s) && tags.of_column(r, s); });
  }
  sums.add_up(of_columns + kParts * tile.columns * blockIdx.y + column, tile.columns, tile.columns - column);
}

// Adds parts [blocks, kParts, count] to the sums from `first` on: a warp for each row (or column), its lanes along the
// blocks.
template <typename A>
__global__ void __launch_bounds__(kWarp* kWarps)
    add_parts(PairTile tile, const A* parts, int64_t blocks, int64_t count, int64_t first, Sums sums) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y, place = first + i;
  if (i >= count) return;  // a whole warp leaves: no barrier follows
  const auto part = [&](int64_t block, Part which) {
    return static_cast<double>(parts[(block * kParts + which) * count + i]);
  };
  const double known = sums.max[place];
  double largest = known;
  for (int64_t b = threadIdx.x; b < blocks; b += kWarp) largest = larger(largest, part(b, kLargest));
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  }
  const double base = base_of(largest), scale = static_cast<double>(scale_of<A>(tile));
  double total = 0, positive = 0;
  for (int64_t b = threadIdx.x; b < blocks; b += kWarp) {
    total += part(b, kTotal) * gpu::exp_below_one((part(b, kLargest) - base) * scale);
    positive += part(b, kPositive) + part(b, kPositiveRest);
  }
  total = warp_sum(total);
  positive = warp_sum(positive);
  if (threadIdx.x != 0) return;
  sums.max[place] = largest;
  sums.sum[place] = sums.sum[place] * gpu::exp_below_one((known - base) * scale) + total;
  sums.positive[place] += positive;
}

// One side of the gradient, of one row (or column).
template <typename A>
struct Known {
  A max, weight, wanted, scale;

  __device__ Known(const Side& side, int64_t place, bool inside, A scale)
      : max(inside ? static_cast<const A*>(side.max)[place] : A(0)),
        weight(inside ? static_cast<const A*>(side.weight)[place] : A(0)),
        wanted(inside ? static_cast<const A*>(side.wanted)[place] : A(0)),
        scale(scale) {}
  // To `gradient` that by the product is added, and to `lacks` the same times what the logit lacks of the largest.
  __device__ void add(A product, bool positive, A& gradient, A& lacks) const {
    const A below = (product - max) * scale;
    const A value = weight * gpu::exp_below_one(below) - (positive ? wanted : A(0));
    gradient += value;
    lacks += value * below;
  }
};

// gradient: [rows, columns] of the tile; of_scale: [blocks of columns, rows], what is added to dscale. grid: (blocks of
// columns, blocks of rows).
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads, kBlocks)
    tile_gradient(PairTile tile, Positives positives, Side row_side, Side column_side, A* gradient, A* of_scale) {
  __shared__ A part[kSide][kTile + 1];
  const Pairs pairs(tile);
  A product[kEach][kEach] = {}, g[kEach][kEach] = {}, lacks[kEach] = {};
  multiply<T>(tile, product);
  const Tags tags(positives, pairs);
  const A scale = scale_of<A>(tile);
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const Known<A> known(row_side, pairs.row(r), pairs.row(r) < pairs.row_end, scale);
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      if (pairs.compared(r, s)) known.add(product[r][s], tags.of_row(r, s), g[r][s], lacks[r]);
    }
  }
  if (column_side.max != nullptr) {
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      const Known<A> known(column_side, pairs.column(s), pairs.column(s) < pairs.column_end, scale);
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
        if (pairs.compared(r, s)) known.add(product[r][s], tags.of_column(r, s), g[r][s], lacks[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    A* const target = gradient + (pairs.row(r) - tile.first_row) * tile.columns - tile.first_column;
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      if (pairs.in_tile(r, s)) target[pairs.column(s)] = g[r][s];
    }
    part[threadIdx.x][Pairs::row_in_block(r)] = lacks[r];
  }
  __syncthreads();
  const int place = threadIdx.y * kSide + threadIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile + place;
  if (place >= kTile || row >= tile.rows) return;
  A total = 0;
  for (int n = 0; n < kSide; ++n) total += part[n][place];
  of_scale[blockIdx.x * tile.rows + row] = total;
}

// A warp for each row, as add_parts.
template <typename A>
__global__ void __launch_bounds__(kWarp* kWarps)
    add_scale(const A* of_scale, int64_t blocks, int64_t rows, double* dscale) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= rows) return;  // a whole warp leaves: no barrier follows
  double sum = 0;
  for (int64_t b = threadIdx.x; b < blocks; b += kWarp) sum += static_cast<double>(of_scale[b * rows + row]);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) dscale[row] += sum;
}

int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by; }

unsigned grid_size(int64_t blocks, int64_t most = 0x7fffffff) {
  if (blocks > most) throw std::invalid_argument("info_nce: more blocks than a grid has; make tiles smaller");
  return static_cast<unsigned>(blocks);
}

dim3 tile_grid(const PairTile& tile) {
  return dim3(grid_size(up(tile.columns, kTile)), grid_size(up(tile.rows, kTile), 65535));
}

unsigned warp_grid(int64_t count) { return grid_size(up(count, kWarps)); }

// f(a null pointer of the element type); not for a tile without pairs.
template <typename F>
void choose(const PairTile& tile, const F& f) {
  if (tile.rows > 0 && tile.columns > 0) dispatch(tile.dtype, f);
}

}  // namespace

int64_t info_nce_scratch(int64_t rows, int64_t columns) {
  return kParts * (up(columns, kTile) * rows + up(rows, kTile) * columns);
}

void info_nce_sums(const PairTile& tile, const Positives& positives, const Sums& rows, const Sums& columns,
                   void* scratch, void* stream) {
  choose(tile, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const dim3 grid = tile_grid(tile), warps(kWarp, kWarps);
    A* const of_rows = static_cast<A*>(scratch);
    A* const of_columns = columns.max == nullptr ? nullptr : of_rows + kParts * tile.rows * grid.x;
    CPL_LAUNCH((tile_sums<T, A>), grid, dim3(kSide, kSide), 0, stream, tile, positives, of_rows, of_columns);
    CPL_LAUNCH((add_parts<A>), warp_grid(tile.rows), warps, 0, stream, tile, static_cast<const A*>(of_rows),
               static_cast<int64_t>(grid.x), tile.rows, tile.first_row, rows);
    if (of_columns == nullptr) return;
    CPL_LAUNCH((add_parts<A>), warp_grid(tile.columns), warps, 0, stream, tile, static_cast<const A*>(of_columns),
               static_cast<int64_t>(grid.y), tile.columns, tile.first_column, columns);
  });
}

void info_nce_gradient(const PairTile& tile, const Positives& positives, const Side& rows, const Side& columns,
                       void* gradient, double* dscale, void* scratch, void* stream) {
  choose(tile, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const dim3 grid = tile_grid(tile);
    A* const of_scale = static_cast<A*>(scratch);
    CPL_LAUNCH((tile_gradient<T, A>), grid, dim3(kSide, kSide), 0, stream, tile, positives, rows, columns,
               static_cast<A*>(gradient), of_scale);
    CPL_LAUNCH((add_scale<A>), warp_grid(tile.rows), dim3(kWarp, kWarps), 0, stream, static_cast<const A*>(of_scale),
               static_cast<int64_t>(grid.x), tile.rows, dscale + tile.first_row);
  });
}

}  // namespace cpl::cuda
