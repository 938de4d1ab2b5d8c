// feature_distances without a norm: every element for itself.
#pragma once

#include "feature_distances/cpu_tiles.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kFused = 4;  // others in one loop: their sums hide each other's latency

template <int kOthers, int kPower, typename T, typename A>
void add_terms(const T* __restrict a, const T* const* o, int64_t count, double* sums) {
  const T* const o0 = o[0];
  const T* const o1 = o[kOthers > 1 ? 1 : 0];
  const T* const o2 = o[kOthers > 2 ? 2 : 0];
  const T* const o3 = o[kOthers > 3 ? 3 : 0];
  for (int64_t first = 0; first < count; first += kFlush) {
    const int64_t end = std::min(count, first + kFlush);
    A s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t j = first; j < end; ++j) {
      const A x = load(a + j);
      s0 += distance_term<kPower>(x - static_cast<A>(load(o0 + j)));
      if constexpr (kOthers > 1) s1 += distance_term<kPower>(x - static_cast<A>(load(o1 + j)));
      if constexpr (kOthers > 2) s2 += distance_term<kPower>(x - static_cast<A>(load(o2 + j)));
      if constexpr (kOthers > 3) s3 += distance_term<kPower>(x - static_cast<A>(load(o3 + j)));
    }
    const A partial[kFused] = {s0, s1, s2, s3};
    for (int k = 0; k < kOthers; ++k) sums[k] += static_cast<double>(partial[k]);
  }
}

// gradient (+)= sum over the others of their slopes
template <int kOthers, bool kFirst, int kPower, typename T, typename A>
void add_slopes(const T* __restrict a, const T* const* o, const A* scales, A* __restrict gradient, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const A x = load(a + j);
    A sum = kFirst ? A(0) : gradient[j];
    for (int k = 0; k < kOthers; ++k) sum += distance_slope<kPower>(x - static_cast<A>(load(o[k] + j)), scales[k]);
    gradient[j] = sum;
  }
}

// Calls f(number of others as a constant, first k) for groups of up to four.
template <typename F>
void in_groups(int64_t negatives, const F& f) {
  for (int64_t k = 0; k < negatives; k += kFused) {
    switch (negatives - k) {
      case 1:
        f(std::integral_constant<int, 1>(), k);
        break;
      case 2:
        f(std::integral_constant<int, 2>(), k);
        break;
      case 3:
        f(std::integral_constant<int, 3>(), k);
        break;
      default:
        f(std::integral_constant<int, 4>(), k);
    }
  }
}

template <int kPower, typename T, typename A>
void forward_plain(const DistancesForward& args, int threads) {
  sum_pieces<A>(args, pieces_of_rows(args.size), threads, 0, [&](const Piece& piece, double* sums, char*) {
    for (int64_t row = piece.row; row < piece.row + piece.rows; ++row) {
      const T* const a = at<T>(args.anchor, piece.batch, row, piece.first);
      in_groups(args.size.negatives, [&](auto others, int64_t k) {
        const T* o[kFused];
        for (int i = 0; i < others; ++i) o[i] = at<T>(args.others, k + i, piece.batch, row, piece.first);
        add_terms<others, kPower, T, A>(a, o, piece.count, sums + k);
      });
    }
  });
}

template <int kPower, typename T, typename A>
void anchor_slopes(const DistancesBackward& args, const Piece& piece, int64_t row, A* gradient) {
  const T* const a = at<T>(args.anchor, piece.batch, row, piece.first);
  in_groups(args.size.negatives, [&](auto others, int64_t k) {
    const T* o[kFused];
    A scales[kFused];
    for (int i = 0; i < others; ++i) {
      o[i] = at<T>(args.others, k + i, piece.batch, row, piece.first);
      scales[i] = scale_of<A>(args, k + i, piece.batch);
    }
    if (k == 0) return add_slopes<others, true, kPower>(a, o, scales, gradient, piece.count);
    add_slopes<others, false, kPower>(a, o, scales, gradient, piece.count);
  });
}

template <int kPower, typename T, typename A>
void backward_plain(const DistancesBackward& args, int threads) {
  const DistancesSize& size = args.size;
  const Pieces pieces = pieces_of_rows(size);
  const int64_t elements = size.batch * size.rows * size.run;
  const Writer<T, A> anchor_writer(args.danchor, elements);
  const Writer<T, A> others_writer(args.dothers, size.negatives * elements);
  // body fills the gradient of the rows of a piece.
  const auto emit = [&](const Writer<T, A>& writer, const Piece& piece, T* target, A* scratch, const auto& fill) {
    if constexpr (std::is_same_v<T, A>) {
      if (writer.in_place()) {
        for (int64_t r = 0; r < piece.rows; ++r) fill(piece.row + r, target + r * piece.count);
        return;
      }
    }
    for (int64_t r = 0; r < piece.rows; ++r) fill(piece.row + r, scratch + r * piece.count);
    writer.write(target, scratch, piece.rows * piece.count, scratch + kPiece);
  };
  parallel_for(pieces.total(), threads, sizeof(A) * 2 * kPiece, [&](int64_t i, char* own) {
    const Piece piece = pieces.at(i);
    A* const scratch = reinterpret_cast<A*>(own);
    if (args.danchor != nullptr) {
      emit(anchor_writer, piece, result_at<T>(args.danchor, size, 0, piece.batch, piece.row, piece.first), scratch,
           [&](int64_t row, A* gradient) { anchor_slopes<kPower, T>(args, piece, row, gradient); });
    }
    for (int64_t k = 0; k < size.negatives && args.dothers != nullptr; ++k) {
      const A scale = scale_of<A>(args, k, piece.batch);
      emit(others_writer, piece, result_at<T>(args.dothers, size, k, piece.batch, piece.row, piece.first), scratch,
           [&](int64_t row, A* gradient) {  // the same, the other way round
             const T* const a[] = {at<T>(args.anchor, piece.batch, row, piece.first)};
             add_slopes<1, true, kPower>(at<T>(args.others, k, piece.batch, row, piece.first), a, &scale, gradient,
                                         piece.count);
           });
    }
    anchor_writer.finish();
    others_writer.finish();
  });
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
