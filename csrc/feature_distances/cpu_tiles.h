// How feature_distances divides its work on CPU, and how it writes results.
//
// An image is cut into pieces whose bounds depend on the size alone. A piece of the anchor is read once and stays in
// cache while all K others come by; it leaves K sums in fp64, which are added up in order afterwards: the same bits at
// any number of threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/pages.h"
#include "common/parallel.h"
#include "common/stream.h"
#include "feature_distances/math.h"
#include "feature_distances/op.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kPiece = 4096;                   // elements: a piece of all operands stays in the L2 cache
constexpr int64_t kFlush = 1024;                   // terms summed in fp32, side by side, before going to fp64
constexpr size_t kStreamBytes = size_t{24} << 20;  // the least result that is written past the caches

// A piece: rows [row, row + rows) of an image, and of each [first, first + count).
struct Piece {
  int64_t batch;
  int64_t row;
  int64_t rows;
  int64_t first;
  int64_t count;
};

// Pieces of `rows` rows by `count` elements, those of a batch in memory order.
struct Pieces {
  DistancesSize size;
  int64_t rows;
  int64_t count;

  int64_t across() const { return (size.run + count - 1) / count; }
  int64_t per_image() const { return across() * ((size.rows + rows - 1) / rows); }
  int64_t total() const { return size.batch * per_image(); }
  Piece at(int64_t index) const {
    const int64_t within = index % per_image();
    const int64_t row = within / across() * rows, first = within % across() * count;
    return {index / per_image(), row, std::min(rows, size.rows - row), first, std::min(count, size.run - first)};
  }
};

// Whole rows where they are short, parts of one where they are long.
inline Pieces pieces_of_rows(const DistancesSize& size) {
  return {size, std::max<int64_t>(1, kPiece / size.run), std::min(size.run, kPiece)};
}

template <typename T>
const T* at(const Anchor& anchor, int64_t batch, int64_t row, int64_t first) {
  return static_cast<const T*>(anchor.data) + batch * anchor.stride_batch + row * anchor.stride_row + first;
}
template <typename T>
const T* at(const Others& others, int64_t k, int64_t batch, int64_t row, int64_t first) {
  return static_cast<const T*>(others.data) + k * others.stride_negative + batch * others.stride_batch +
         row * others.stride_row + first;
}
// In a result in one piece; k = 0 in the anchor's.
template <typename T>
T* result_at(void* result, const DistancesSize& size, int64_t k, int64_t batch, int64_t row, int64_t first) {
  return static_cast<T*>(result) + ((k * size.batch + batch) * size.rows + row) * size.run + first;
}

template <typename A>
A scale_of(const DistancesBackward& args, int64_t k, int64_t batch) {
  return static_cast<const A*>(args.dy)[k * args.size.batch + batch] / static_cast<A>(args.size.rows * args.size.run);
}

// body(piece, sums [K], scratch) adds its terms to sums.
template <typename A, typename Body>
void sum_pieces(const DistancesForward& args, const Pieces& pieces, int threads, size_t scratch_bytes,
                const Body& body) {
  const int64_t negatives = args.size.negatives, per_image = pieces.per_image();
  const Scratch memory(sizeof(double) * static_cast<size_t>(pieces.total() * negatives));
  double* const partial = reinterpret_cast<double*>(memory.data());  // [B, pieces of an image, K]
  parallel_for(pieces.total(), threads, scratch_bytes, [&](int64_t i, char* scratch) {
    std::fill_n(partial + i * negatives, negatives, 0.0);
    body(pieces.at(i), partial + i * negatives, scratch);
  });
  const double elements = static_cast<double>(args.size.rows * args.size.run);
  for (int64_t b = 0; b < args.size.batch; ++b) {
    for (int64_t k = 0; k < negatives; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < per_image; ++i) sum += partial[(b * per_image + i) * negatives + k];
      static_cast<A*>(args.distances)[k * args.size.batch + b] = static_cast<A>(sum / elements);
    }
  }
}

// Where a gradient goes, rounded to its type.
template <typename T, typename A>
class Writer {
 public:
  // Scratch, in elements of A, that `write` wants for n elements.
  static constexpr int64_t kScratch = std::is_same_v<T, A> ? 0 : 1;

  Writer(void* result, int64_t elements)
      : stream_(is_streamed(sizeof(T) * static_cast<size_t>(elements), kStreamBytes)) {
    if (result != nullptr) prefer_huge_pages(result, sizeof(T) * static_cast<size_t>(elements));
  }
  // Whether the gradient may be formed where it belongs.
  bool in_place() const { return std::is_same_v<T, A> && !stream_; }
  void write(T* target, const A* values, int64_t n, [[maybe_unused]] A* scratch) const {
    if constexpr (std::is_same_v<T, A>) {
      if (stream_) return stream_copy(target, values, sizeof(T) * static_cast<size_t>(n));
      std::memcpy(target, values, sizeof(T) * static_cast<size_t>(n));
    } else {
      T* const narrowed = stream_ ? reinterpret_cast<T*>(scratch) : target;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) store(narrowed + j, values[j]);
      if (stream_) stream_copy(target, narrowed, sizeof(T) * static_cast<size_t>(n));
    }
  }
  void finish() const {
    if (stream_) stream_fence();
  }

 private:
  bool stream_;
};

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
