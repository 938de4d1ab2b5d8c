// Rows of numbers, as aggregate_prompts on CPU works on them: mixed, gathered, and written where the result lies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
#include "common/lanes.h"
#include "common/stream.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kFused = 4;  // rows summed in one go

template <int kRows, bool kAdd, typename T, typename A>
inline void mix_rows(const T* const* rows, const A* weights, A* __restrict out, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    A sum = kAdd ? out[j] : A(0);
    for (int i = 0; i < kRows; ++i) sum += weights[i] * static_cast<A>(load(rows[i] + j));
    out[j] = sum;
  }
}

template <bool kAdd, typename T, typename A>
inline void mix_some(const T* const* rows, const A* weights, int64_t count, A* out, int64_t n) {
  switch (count) {
    case 1:
      return mix_rows<1, kAdd>(rows, weights, out, n);
    case 2:
      return mix_rows<2, kAdd>(rows, weights, out, n);
    case 3:
      return mix_rows<3, kAdd>(rows, weights, out, n);
    default:
      return mix_rows<4, kAdd>(rows, weights, out, n);
  }
}

// out[j] = sum over i < count of weight(i) * row(i)[j]
template <typename A, typename Row, typename Weight>
inline void mix(int64_t count, const Row& row, const Weight& weight, A* out, int64_t n) {
  if (count == 0) std::fill_n(out, n, A(0));
  for (int64_t first = 0; first < count; first += kFused) {
    const int64_t some = std::min(kFused, count - first);
    std::decay_t<decltype(row(0))> rows[kFused];
    A weights[kFused];
    for (int64_t i = 0; i < some; ++i) {
      rows[i] = row(first + i);
      weights[i] = static_cast<A>(weight(first + i));
    }
    if (first == 0) {
      mix_some<false>(rows, weights, some, out, n);
    } else {
      mix_some<true>(rows, weights, some, out, n);
    }
  }
}

// Of rows that lie `stride` apart, one vector: sum over i of weights[i] * rows[i * stride].
template <int kRows, typename T, typename A>
inline typename Lanes<A>::Vector mix_vector(const T* rows, int64_t stride, const A* weights) {
  typename Lanes<A>::Vector sum = weights[0] * Lanes<A>::widen(rows);
  for (int i = 1; i < kRows; ++i) sum += weights[i] * Lanes<A>::widen(rows + i * stride);
  return sum;
}

// n: at least a vector. The last one overlaps the one before.
template <int kRows, typename T, typename A>
inline void mix_run_of(const T* rows, int64_t stride, const A* weights, A* __restrict out, int64_t n) {
  A own[kRows];  // `out` could be `weights`, as far as the compiler knows
  std::copy_n(weights, kRows, own);
  for (int64_t next = 0; next < n; next += Lanes<A>::kCount) {
    const int64_t j = std::min(next, n - Lanes<A>::kCount);
    Lanes<A>::set(out + j, mix_vector<kRows>(rows + j, stride, own));
  }
}

// out[j] = sum over i < count of weights[i] * rows[i * stride + j]
template <typename T, typename A>
inline void mix_run(const T* rows, int64_t stride, const A* weights, int64_t count, A* out, int64_t n) {
  if (n >= Lanes<A>::kCount) {
    if (count == 1) return mix_run_of<1>(rows, stride, weights, out, n);
    if (count == 2) return mix_run_of<2>(rows, stride, weights, out, n);
    if (count == 3) return mix_run_of<3>(rows, stride, weights, out, n);
    if (count == 4) return mix_run_of<4>(rows, stride, weights, out, n);
  }
  mix(count, [&](int64_t i) { return rows + i * stride; }, [&](int64_t i) { return weights[i]; }, out, n);
}

template <typename T, typename A>
inline void narrow(const A* __restrict from, T* __restrict to, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) store(to + j, from[j]);
}

// n numbers to where the result lies; `buffer` for as many.
template <typename T, typename A>
inline void write_narrow(const A* from, T* target, int64_t n, bool stream, A* buffer) {
  if (!stream) return narrow(from, target, n);
  const void* source = from;
  if constexpr (!std::is_same_v<T, A>) {
    narrow(from, reinterpret_cast<T*>(buffer), n);
    source = buffer;
  }
  stream_copy(target, source, sizeof(T) * static_cast<size_t>(n));
}

// Elements in memory, written through `fill(A* buffer)`: at once where they are, or by way of a buffer.
template <typename T, typename A, typename Fill>
inline void write(T* target, int64_t n, bool stream, A* buffer, const Fill& fill) {
  if constexpr (std::is_same_v<T, A>) {
    if (!stream) return fill(target);
    fill(buffer);
    stream_copy(target, buffer, sizeof(T) * static_cast<size_t>(n));
  } else {
    fill(buffer);
    if (!stream) return narrow(buffer, target, n);
    T* const narrowed = reinterpret_cast<T*>(buffer + n);
    narrow(buffer, narrowed, n);
    stream_copy(target, narrowed, sizeof(T) * static_cast<size_t>(n));
  }
}

template <typename T>
inline void write_zeros(T* target, int64_t n) {
  std::memset(static_cast<void*>(target), 0, sizeof(T) * static_cast<size_t>(n));
}

// One prompt and up to two gradients d of images that used it: acc (+)= sum of w d, dots += <d, prompt>.
template <int kRows, bool kFirst, bool kDots, bool kAcc, typename D, typename T, typename A>
inline void gather_rows(const D* const* d, const A* weights, const T* __restrict prompt, A* __restrict acc,
                        double* const* dots, int64_t n) {
  const D* d0 = d[0];
  const D* d1 = d[kRows - 1];
  const A w0 = weights[0], w1 = weights[kRows - 1];
  A dot0 = 0, dot1 = 0;
#pragma omp simd reduction(+ : dot0, dot1)
  for (int64_t j = 0; j < n; ++j) {
    const A a = load(d0 + j);
    const A b = kRows == 2 ? static_cast<A>(load(d1 + j)) : A(0);
    if constexpr (kAcc) acc[j] = (kFirst ? A(0) : acc[j]) + (kRows == 2 ? w0 * a + w1 * b : w0 * a);
    if constexpr (kDots) {
      const A p = load(prompt + j);
      dot0 += a * p;
      if constexpr (kRows == 2) dot1 += b * p;
    }
  }
  if constexpr (kDots) {
    *dots[0] += static_cast<double>(dot0);
    if constexpr (kRows == 2) *dots[1] += static_cast<double>(dot1);
  }
}

template <typename D, typename T, typename A>
inline void gather(int64_t rows, bool first, const D* const* d, const A* weights, const T* prompt, A* acc,
                   double* const* dots, int64_t n) {
  const auto call = [&](auto two, auto is_first, auto with_dots, auto with_acc) {
    gather_rows<decltype(two)::value ? 2 : 1, decltype(is_first)::value, decltype(with_dots)::value,
                decltype(with_acc)::value>(d, weights, prompt, acc, dots, n);
  };
  const auto choose = [&](auto two, auto is_first) {
    if (acc == nullptr) return call(two, is_first, std::true_type(), std::false_type());
    if (dots[0] == nullptr) return call(two, is_first, std::false_type(), std::true_type());
    call(two, is_first, std::true_type(), std::true_type());
  };
  if (rows == 2) {
    if (first) return choose(std::true_type(), std::true_type());
    return choose(std::true_type(), std::false_type());
  }
  if (first) return choose(std::false_type(), std::true_type());
  choose(std::false_type(), std::false_type());
}

template <typename T>
size_t bytes(int64_t rows, int64_t length) {
  return static_cast<size_t>(rows * length) * sizeof(T);
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
