// feature_distances with the norm along the run: channels-last images (NHWC), whose rows are their pixels, and vectors.
#pragma once

#include "feature_distances/cpu_tiles.h"

namespace cpl {
namespace CPL_ISA {
namespace {

template <typename T, typename A>
A inverse_norm_of(const T* __restrict x, int64_t n) {
  A square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t j = 0; j < n; ++j) square += static_cast<A>(load(x + j)) * static_cast<A>(load(x + j));
  return inverse_norm(square);
}

// Whole rows: a row is a channel vector.
inline Pieces pieces_of_vectors(const DistancesSize& size) {
  return {size, std::max<int64_t>(1, kPiece / size.run), size.run};
}

template <int kPower, typename T, typename A>
void forward_along(const DistancesForward& args, int threads) {
  const int64_t run = args.size.run;
  sum_pieces<A>(args, pieces_of_vectors(args.size), threads, 0, [&](const Piece& piece, double* sums, char*) {
    for (int64_t row = piece.row; row < piece.row + piece.rows; ++row) {
      const T* __restrict a = at<T>(args.anchor, piece.batch, row, 0);
      const A a_inverse = inverse_norm_of<T, A>(a, run);
      for (int64_t k = 0; k < args.size.negatives; ++k) {
        const T* __restrict o = at<T>(args.others, k, piece.batch, row, 0);
        const A o_inverse = inverse_norm_of<T, A>(o, run);
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < run; ++j) {
          sum += distance_term<kPower>(load(a + j) * a_inverse - load(o + j) * o_inverse);
        }
        sums[k] += static_cast<double>(sum);
      }
    }
  });
}

// values: dx^ -> dx = (dx^ - x^ <x^, dx^>) * inverse
template <typename T, typename A>
void through_norm(A* __restrict values, const T* __restrict x, A inverse, int64_t n) {
  A dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t j = 0; j < n; ++j) dot += values[j] * (load(x + j) * inverse);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) values[j] = (values[j] - load(x + j) * inverse * dot) * inverse;
}

template <int kPower, typename T, typename A>
void backward_along(const DistancesBackward& args, int threads) {
  const DistancesSize& size = args.size;
  const Pieces pieces = pieces_of_vectors(size);
  const int64_t run = size.run, elements = size.batch * size.rows * run;
  const Writer<T, A> anchor_writer(args.danchor, elements), others_writer(args.dothers, size.negatives * elements);
  parallel_for(pieces.total(), threads, sizeof(A) * static_cast<size_t>(3 * run), [&](int64_t i, char* own) {
    const Piece piece = pieces.at(i);
    A* __restrict da = reinterpret_cast<A*>(own);
    A* __restrict d_o = da + run;
    A* const narrow = d_o + run;
    for (int64_t row = piece.row; row < piece.row + piece.rows; ++row) {
      const T* __restrict a = at<T>(args.anchor, piece.batch, row, 0);
      const A a_inverse = inverse_norm_of<T, A>(a, run);
      std::fill_n(da, run, A(0));
      for (int64_t k = 0; k < size.negatives; ++k) {
        const T* __restrict o = at<T>(args.others, k, piece.batch, row, 0);
        const A o_inverse = inverse_norm_of<T, A>(o, run), scale = scale_of<A>(args, k, piece.batch);
#pragma omp simd
        for (int64_t j = 0; j < run; ++j) {
          d_o[j] = -distance_slope<kPower>(load(a + j) * a_inverse - load(o + j) * o_inverse, scale);
          da[j] -= d_o[j];
        }
        if (args.dothers == nullptr) continue;
        through_norm(d_o, o, o_inverse, run);
        others_writer.write(result_at<T>(args.dothers, size, k, piece.batch, row, 0), d_o, run, narrow);
      }
      if (args.danchor == nullptr) continue;
      through_norm(da, a, a_inverse, run);
      anchor_writer.write(result_at<T>(args.danchor, size, 0, piece.batch, row, 0), da, run, narrow);
    }
    anchor_writer.finish();
    others_writer.finish();
  });
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
