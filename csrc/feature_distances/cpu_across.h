// feature_distances with the norm across rows: planar images (NCHW), whose channels are the rows.
//
// A piece is a block of neighbouring pixels, all channels, gathered into dense scratch that stays in cache for the
// second look that the norm needs; whoever comes from memory comes once.
#pragma once

#include "feature_distances/cpu_tiles.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kLongBlock = 128, kShortBlock = 16;  // pixels
constexpr int64_t kBlockBytes = int64_t{1} << 17;      // of a gathered block, where it can be had
constexpr int64_t kRowsAhead = 3;                      // fetched ahead: the hardware does not see short runs coming
constexpr int64_t kRowsFlush = 64;                     // terms of a pixel summed in fp32 before going to fp64

// The widest block of pixels that stays in cache, by the size alone.
template <typename A>
Pieces blocks_of_pixels(const DistancesSize& size) {
  int64_t block = kLongBlock;
  while (block > kShortBlock && block * size.rows * static_cast<int64_t>(sizeof(A)) > kBlockBytes) block /= 2;
  return {size, size.rows, block};
}

// [rows, count] to dense [rows, block] in A, and 1 / norm of every column.
template <typename T, typename A>
void gather_block(const T* from, int64_t stride, int64_t rows, int64_t count, int64_t block, A* __restrict to,
                  A* __restrict inverse) {
  std::fill_n(inverse, count, A(0));
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict source = from + r * stride;
    A* __restrict target = to + r * block;
    if (r + kRowsAhead < rows) {
      for (int64_t j = 0; j < count; j += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(source + kRowsAhead * stride + j);
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const A x = load(source + j);
      target[j] = x;
      inverse[j] += x * x;
    }
  }
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) inverse[j] = inverse_norm(inverse[j]);
}

template <typename A>
void scale_block(A* __restrict values, const A* __restrict factor, int64_t rows, int64_t count, int64_t block) {
  for (int64_t r = 0; r < rows; ++r) {
    A* __restrict row = values + r * block;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) row[j] *= factor[j];
  }
}

// Scratch of a piece: `blocks` of rows by block elements, and `lines` of block elements.
template <typename A>
struct BlockScratch {
  int64_t rows, block, blocks, lines;

  size_t bytes() const { return sizeof(A) * static_cast<size_t>(block * (blocks * rows + lines)); }
  A* tile(char* own, int64_t i) const { return reinterpret_cast<A*>(own) + i * rows * block; }
  A* line(char* own, int64_t i) const { return reinterpret_cast<A*>(own) + (blocks * rows + i) * block; }
};

template <int kPower, typename T, typename A>
void forward_across(const DistancesForward& args, int threads) {
  const Pieces pieces = blocks_of_pixels<A>(args.size);
  const int64_t rows = args.size.rows, block = pieces.count;
  const BlockScratch<A> scratch{rows, block, 2, 2};
  sum_pieces<A>(args, pieces, threads, scratch.bytes(), [&](const Piece& piece, double* sums, char* own) {
    A* const a = scratch.tile(own, 0);
    A* const o = scratch.tile(own, 1);
    A* const inverse = scratch.line(own, 0);
    A* const terms = scratch.line(own, 1);
    const int64_t count = piece.count;
    gather_block(at<T>(args.anchor, piece.batch, 0, piece.first), args.anchor.stride_row, rows, count, block, a,
                 inverse);
    scale_block(a, inverse, rows, count, block);
    for (int64_t k = 0; k < args.size.negatives; ++k) {
      gather_block(at<T>(args.others, k, piece.batch, 0, piece.first), args.others.stride_row, rows, count, block, o,
                   inverse);
      for (int64_t first = 0; first < rows; first += kRowsFlush) {
        std::fill_n(terms, count, A(0));
        for (int64_t r = first; r < std::min(rows, first + kRowsFlush); ++r) {
          const A* __restrict x = a + r * block;
          const A* __restrict y = o + r * block;
#pragma omp simd
          for (int64_t j = 0; j < count; ++j) terms[j] += distance_term<kPower>(x[j] - y[j] * inverse[j]);
        }
        for (int64_t j = 0; j < count; ++j) sums[k] += static_cast<double>(terms[j]);
      }
    }
  });
}

// values: dx^ -> dx = (dx^ - x^ <x^, dx^>) * inverse, with dots = <x^, dx^> of every column.
template <typename A>
void through_norms(A* __restrict values, const A* __restrict unit, const A* __restrict dots,
                   const A* __restrict inverse, int64_t rows, int64_t count, int64_t block) {
  for (int64_t r = 0; r < rows; ++r) {
    A* __restrict d = values + r * block;
    const A* __restrict x = unit + r * block;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) d[j] = (d[j] - x[j] * dots[j]) * inverse[j];
  }
}

template <int kPower, typename T, typename A>
void backward_across(const DistancesBackward& args, int threads) {
  const DistancesSize& size = args.size;
  const Pieces pieces = blocks_of_pixels<A>(size);
  const int64_t rows = size.rows, block = pieces.count, elements = size.batch * rows * size.run;
  const bool need_others = args.dothers != nullptr;
  const Writer<T, A> anchor_writer(args.danchor, elements), others_writer(args.dothers, size.negatives * elements);
  const BlockScratch<A> scratch{rows, block, need_others ? 4 : 3, 4};
  parallel_for(pieces.total(), threads, scratch.bytes(), [&](int64_t i, char* own) {
    const Piece piece = pieces.at(i);
    const int64_t count = piece.count;
    A* const a = scratch.tile(own, 0);
    A* const da = scratch.tile(own, 1);
    A* const o = scratch.tile(own, 2);
    A* const d_o = scratch.tile(own, 3);  // only if others' gradient is needed
    A* const a_inverse = scratch.line(own, 0);
    A* const o_inverse = scratch.line(own, 1);
    A* const dots = scratch.line(own, 2);
    A* const narrow = scratch.line(own, 3);
    const auto write = [&](const Writer<T, A>& writer, void* result, int64_t k, const A* values) {
      for (int64_t r = 0; r < rows; ++r) {
        writer.write(result_at<T>(result, size, k, piece.batch, r, piece.first), values + r * block, count, narrow);
      }
    };
    gather_block(at<T>(args.anchor, piece.batch, 0, piece.first), args.anchor.stride_row, rows, count, block, a,
                 a_inverse);
    scale_block(a, a_inverse, rows, count, block);
    std::fill_n(da, rows * block, A(0));
    for (int64_t k = 0; k < size.negatives; ++k) {
      const A scale = scale_of<A>(args, k, piece.batch);
      gather_block(at<T>(args.others, k, piece.batch, 0, piece.first), args.others.stride_row, rows, count, block, o,
                   o_inverse);
      scale_block(o, o_inverse, rows, count, block);
      std::fill_n(dots, count, A(0));
      for (int64_t r = 0; r < rows; ++r) {
        const A* __restrict x = a + r * block;
        const A* __restrict y = o + r * block;
        A* __restrict d = da + r * block;
        // By itself: the anchor's gradient has the same bits whether or not the others' is wanted.
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) d[j] += distance_slope<kPower>(x[j] - y[j], scale);
        if (!need_others) continue;
        A* __restrict other = d_o + r * block;
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) {
          other[j] = distance_slope<kPower>(y[j] - x[j], scale);
          dots[j] += other[j] * y[j];
        }
      }
      if (need_others) {
        through_norms(d_o, o, dots, o_inverse, rows, count, block);
        write(others_writer, args.dothers, k, d_o);
      }
    }
    if (args.danchor != nullptr) {
      std::fill_n(dots, count, A(0));
      for (int64_t r = 0; r < rows; ++r) {
        const A* __restrict x = a + r * block;
        const A* __restrict d = da + r * block;
#pragma omp simd
        for (int64_t j = 0; j < count; ++j) dots[j] += x[j] * d[j];
      }
      through_norms(da, a, dots, a_inverse, rows, count, block);
      write(anchor_writer, args.danchor, 0, da);
    }
    anchor_writer.finish();
    others_writer.finish();
  });
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
