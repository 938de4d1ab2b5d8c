// The small matrices of channel_attention on CPU, of one head of one image: cosines, softmax and their gradients.
#pragma once

#include <cmath>
#include <cstring>

#include "channel_attention/cpu_products.h"
#include "channel_attention/math.h"
#include "channel_attention/op.h"
#include "common/normal.h"

namespace cpl {
namespace CPL_ISA {
namespace {

// What is kept between forward and backward, of one head.
template <typename A>
struct HeadStatistics {
  A temperature;
  A* q_norm;   // [c]
  A* k_norm;   // [c]
  A* cosines;  // [c, c]

  template <typename Args>
  HeadStatistics(const Args& args, int64_t head)
      : temperature(static_cast<const A*>(args.temperature)[head % args.size.heads]),
        q_norm(at(args.q_norm, head * args.size.width)),
        k_norm(at(args.k_norm, head * args.size.width)),
        cosines(at(args.cosines, head * args.size.width * args.size.width)) {}

 private:
  static A* at(const void* data, int64_t offset) { return static_cast<A*>(const_cast<void*>(data)) + offset; }
};

// The backward's, of one head.
template <typename A>
struct SmallMatrices {
  A* attention;   // [c, c]
  A* packed;      // A^T for the pass over dy, then M
  A* transposed;  // M^T, packed
  A* project_q;   // [c]
  A* project_k;   // [c]
};

// exp(x) for x <= 0; a NaN stays one, which exp_negative alone does not do.
inline float exponential(float x) { return exp_negative(x) + 0.0f * x; }
inline double exponential(double x) { return std::exp(x); }

// softmax(temperature * cosines) of one row.
template <typename A>
void softmax_row(const A* __restrict cosines, A temperature, int64_t width, A* __restrict row) {
  A largest = temperature * cosines[0];
  for (int64_t j = 1; j < width; ++j) largest = std::max(largest, temperature * cosines[j]);
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) row[j] = exponential(temperature * cosines[j] - largest);
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < width; ++j) sum += row[j];
  const A inverse = A(1) / sum;
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) row[j] *= inverse;
}

// From the sums over all pixels: Gram [c, c], squares of q and of k [c] each.
template <typename A>
void cosines_of(const double* sums, int64_t width, const HeadStatistics<A>& at) {
  const double* squares = sums + width * width;
  for (int64_t i = 0; i < width; ++i) {
    at.q_norm[i] = static_cast<A>(attention_norm(squares[i]));
    at.k_norm[i] = static_cast<A>(attention_norm(squares[width + i]));
  }
  for (int64_t i = 0; i < width; ++i) {
    const double* __restrict gram = sums + i * width;
    A* __restrict cosines = at.cosines + i * width;
    const double q_norm = static_cast<double>(at.q_norm[i]);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      cosines[j] = static_cast<A>(gram[j] / (q_norm * static_cast<double>(at.k_norm[j])));
    }
  }
}

// The attention, packed for `apply`; `row` is scratch [c].
template <typename A>
void pack_attention(const HeadStatistics<A>& at, int64_t width, A* row, A* packed) {
  std::memset(packed, 0, sizeof(A) * static_cast<size_t>(Packed<A>::size(width)));
  for (int64_t i = 0; i < width; ++i) {
    softmax_row(at.cosines + i * width, at.temperature, width, row);
    for (int64_t j = 0; j < width; ++j) Packed<A>::at(packed, width, i, j) = row[j];
  }
}

// The attention, and its transpose packed.
template <typename A>
void attention_of(const HeadStatistics<A>& at, int64_t width, const SmallMatrices<A>& small) {
  std::memset(small.packed, 0, sizeof(A) * static_cast<size_t>(Packed<A>::size(width)));
  for (int64_t i = 0; i < width; ++i) {
    A* row = small.attention + i * width;
    softmax_row(at.cosines + i * width, at.temperature, width, row);
    for (int64_t j = 0; j < width; ++j) Packed<A>::at(small.packed, width, j, i) = row[j];
  }
}

// From the attention's gradient dA [c, c]: M and M^T packed, a and b; returns the head's share of dtemperature.
// `scratch`: [2, c].
template <typename A>
double gradients_of(const double* dattention, const HeadStatistics<A>& at, int64_t width, A* scratch,
                    const SmallMatrices<A>& small) {
  A* __restrict dcosines = scratch;         // a row of D
  A* __restrict along_k = scratch + width;  // sums over the rows of D * S
  std::memset(small.packed, 0, sizeof(A) * static_cast<size_t>(Packed<A>::size(width)));
  std::memset(small.transposed, 0, sizeof(A) * static_cast<size_t>(Packed<A>::size(width)));
  std::memset(along_k, 0, sizeof(A) * static_cast<size_t>(width));
  double dtemperature = 0;
  for (int64_t i = 0; i < width; ++i) {
    const double* __restrict da = dattention + i * width;
    const A* __restrict attention = small.attention + i * width;
    const A* __restrict cosines = at.cosines + i * width;
    double inner = 0, dlogits_cosines = 0;
#pragma omp simd reduction(+ : inner)
    for (int64_t j = 0; j < width; ++j) inner += da[j] * static_cast<double>(attention[j]);
    A along_q = 0;
#pragma omp simd reduction(+ : along_q, dlogits_cosines)
    for (int64_t j = 0; j < width; ++j) {
      const A dlogit = attention[j] * static_cast<A>(da[j] - inner);
      dlogits_cosines += static_cast<double>(dlogit * cosines[j]);
      dcosines[j] = at.temperature * dlogit;
      const A along = dcosines[j] * cosines[j];
      along_q += along;
      along_k[j] += along;
    }
    dtemperature += dlogits_cosines;
    small.project_q[i] = attention_projection(along_q, at.q_norm[i]);
    for (int64_t j = 0; j < width; ++j) {
      const A m = dcosines[j] / at.q_norm[i] / at.k_norm[j];
      Packed<A>::at(small.packed, width, i, j) = m;
      Packed<A>::at(small.transposed, width, j, i) = m;
    }
  }
  for (int64_t j = 0; j < width; ++j) small.project_k[j] = attention_projection(along_k[j], at.k_norm[j]);
  return dtemperature;
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
