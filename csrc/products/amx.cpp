// Products of matrices by tiles. Compiled once, for processors that have the units.
//
// A thread takes some panels of 32 rows of the left factor, in pieces, into its L2 cache, and brings one panel of the
// right factor after the other to them. Each result is summed by one thread, in an order that the shapes alone decide.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <type_traits>

#include "common/parallel.h"
#include "products/op.h"
#include "products/pieces.h"
#include "products/units.h"

namespace cpl::products {
namespace {

using CPL_ISA::kCacheLine;

constexpr int64_t kPanel = 32;            // rows or columns of one: two tiles
constexpr int64_t kStep = 32;             // terms of a tile's product
constexpr int64_t kLine = 16;             // numbers of a cache line
constexpr int64_t kSteps = 16;            // of a sum before it is added to the result: 512 terms
constexpr int64_t kLeftBytes = 3 << 17;   // of left panels in the L2 cache, of which there are 2 MiB
constexpr int64_t kRightBytes = 3 << 15;  // of right panels there
constexpr int64_t kRowsBytes = 1 << 20;   // of results there, where something is done to them
constexpr int64_t kRowsAhead = 2;         // of a left factor, fetched before they are needed

// Of the calling thread, until it ends: 64-byte aligned. Memory of a call's own would come from the system page by
// page.
char* memory_of_caller(size_t bytes) {
  static thread_local std::unique_ptr<CPL_ISA::Scratch> memory;
  static thread_local size_t had = 0;
  if (memory == nullptr || had < bytes) {
    memory.reset();
    memory = std::make_unique<CPL_ISA::Scratch>(bytes);
    had = bytes;
  }
  return memory->data();
}

int64_t count_of(int64_t n, int64_t each) { return (n + each - 1) / each; }

template <int kPieces>
constexpr int64_t kStepBytes = 2 * kPieces * kTileBytes;  // of a panel

// What is soon read, and may lie beyond all memory: processors by themselves look ahead within a row only.
inline void fetch(const void* address) { __builtin_prefetch(address, 0, 3); }

// Steps [first, first + count) of a panel, from `plain`, of whose rows (or columns) `extent` are there.
template <int kPieces, Side kSide>
void put_panel(const float* plain, int64_t extent, int64_t stride, int64_t terms, int64_t term_stride, int64_t first,
               int64_t count, char* panel, Largest& largest) {
  const auto tiles = [&](int64_t s, int64_t half) {
    return panel + s * kStepBytes<kPieces> + half * kPieces * kTileBytes;
  };
  if (kSide == Side::kLeft && term_stride == 1) {  // row by row, as memory is read fastest
    for (int64_t i = 0; i < kPanel; ++i) {
      const float* const row = plain + (i < extent ? i * stride : 0) + first * kStep;
      const float* const later = row + kRowsAhead * stride;
      for (int64_t s = 0; s < count; ++s) {
        const int64_t there = i < extent ? terms - (first + s) * kStep : 0;
        for (int64_t k = 0; k < kStep; k += kLine) fetch(later + s * kStep + k);
        put_row<kPieces>(row + s * kStep, there, tiles(s, i / kTileRows) + i % kTileRows * kRowBytes, largest);
      }
    }
    return;
  }
  for (int64_t s = 0; s < count; ++s) {
    const int64_t term = (first + s) * kStep;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t i = half * kTileRows;
      const float* const at = plain + (i < extent ? i * stride : 0) + term * term_stride;
      put_tiles<kPieces, kSide>(at, extent - i, stride, terms - term, term_stride, tiles(s, half), largest);
    }
  }
}

// The pieces of two left and two right tiles in registers 4 to 7, all four products; small ones are added first.
#define CPL_LEFT(piece)                                     \
  CPL_TILE_LOAD(4, left + (piece) * kTileBytes, kRowBytes); \
  CPL_TILE_LOAD(5, left + (kPieces + (piece)) * kTileBytes, kRowBytes)
#define CPL_RIGHT(piece)                                     \
  CPL_TILE_LOAD(6, right + (piece) * kTileBytes, kRowBytes); \
  CPL_TILE_LOAD(7, right + (kPieces + (piece)) * kTileBytes, kRowBytes)
#define CPL_FOUR()            \
  ahead.fetch();              \
  CPL_TILE_MULTIPLY(0, 4, 6); \
  CPL_TILE_MULTIPLY(1, 4, 7); \
  CPL_TILE_MULTIPLY(2, 5, 6); \
  CPL_TILE_MULTIPLY(3, 5, 7)

// What is fetched into the L2 cache beside the products, so many lines with every four: the last cache is slow.
struct Ahead {
  const char* next;
  int64_t lines;

  void fetch() {
    for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(next + line * 64, 0, 2);
    next += lines * 64;
  }
};

// How often a step has four products.
template <int kPieces>
constexpr int64_t kFours = kPieces * (kPieces + 1) / 2;

// A block of 32 x 32 results.
template <int kPieces>
void block(const char* left, const char* right, int64_t steps, float* out, int64_t stride, Ahead& ahead) {
  const int64_t bytes = stride * 4;
  CPL_TILE_ZERO(0);
  CPL_TILE_ZERO(1);
  CPL_TILE_ZERO(2);
  CPL_TILE_ZERO(3);
  for (int64_t s = 0; s < steps; ++s, left += kStepBytes<kPieces>, right += kStepBytes<kPieces>) {
    if constexpr (kPieces == 3) {
      CPL_LEFT(2);
      CPL_RIGHT(0);
      CPL_FOUR();
      CPL_LEFT(1);
      CPL_FOUR();
      CPL_RIGHT(1);
      CPL_FOUR();
      CPL_LEFT(0);
      CPL_FOUR();
      CPL_RIGHT(2);
      CPL_FOUR();
      CPL_RIGHT(0);
      CPL_FOUR();
    } else {
      CPL_LEFT(0);
      CPL_RIGHT(0);
      CPL_FOUR();
    }
  }
  CPL_TILE_STORE(0, out, bytes);
  CPL_TILE_STORE(1, out + 16, bytes);
  CPL_TILE_STORE(2, out + 16 * stride, bytes);
  CPL_TILE_STORE(3, out + 16 * stride + 16, bytes);
}

// A block at (row, column), of which only a part may be results. What is added to is so once for all terms: not
// rounded at each.
template <int kPieces>
void put_block(const char* left, const char* right, int64_t steps, const Result& out, int64_t row, int64_t all_rows,
               int64_t column, bool add, Ahead& ahead) {
  float* const at = out.data + row * out.stride + column;
  const int64_t rows = std::min(kPanel, all_rows - row), columns = std::min(kPanel, out.columns - column);
  if (!add && rows == kPanel && columns == kPanel) {
    return block<kPieces>(left, right, steps, at, out.stride, ahead);
  }
  alignas(kCacheLine) float whole[kPanel * kPanel];
  block<kPieces>(left, right, steps, whole, kPanel, ahead);
  for (int64_t i = 0; i < rows; ++i) {
    float* const line = at + i * out.stride;
    const float* const more = whole + i * kPanel;
    if (columns < kPanel) {
      for (int64_t j = 0; j < columns; ++j) line[j] = add ? line[j] + more[j] : more[j];
    } else if (add) {
#pragma omp simd
      for (int64_t j = 0; j < kPanel; ++j) line[j] += more[j];
    } else {
      std::copy_n(more, kPanel, line);
    }
  }
}

struct Range {
  int64_t first;
  int64_t end;
};

// What thread t of all takes of so many panels of rows: as many, or as much of what is above the diagonal.
Range share(int64_t panels, bool above_diagonal, int t, int threads) {
  const auto border = [&](int n) -> int64_t {
    const double part = static_cast<double>(n) / threads;
    if (above_diagonal) return std::llround(static_cast<double>(panels) * (1 - std::sqrt(1 - part)));
    return panels * n / threads;
  };
  return {border(t), border(t + 1)};
}

// What a thread does: rows of blocks [rows.first, rows.end), of them the columns of blocks [columns.first,
// columns.end).
template <int kPieces>
void multiply_some(const Result& out, bool add, const Plain& left, const Packed& right, bool above_diagonal,
                   const Rows& then, Range rows, Range columns, int64_t together, char* own) {
  const char* const packed = static_cast<const char*>(right.data);
  const int64_t steps = count_of(left.columns, kStep), most_steps = std::min(steps, kSteps);
  const int64_t right_together = std::max<int64_t>(1, kRightBytes / (most_steps * kStepBytes<kPieces>));
  float* const own_rows = reinterpret_cast<float*>(own + together * most_steps * kStepBytes<kPieces>);
  const Registers registers;
  Largest unused;
  for (int64_t begin = rows.first; begin < rows.end; begin += together) {
    const int64_t end = std::min(rows.end, begin + together);
    const int64_t row = begin * kPanel, count_rows = std::min(left.rows, end * kPanel) - row;
    const Result block_rows{out.data == nullptr ? own_rows : out.data + row * out.stride, out.stride, out.columns};
    for (int64_t s = 0; s < steps; s += kSteps) {
      const int64_t count = std::min(kSteps, steps - s), panel_bytes = count * kStepBytes<kPieces>;
      for (int64_t i = begin; i < end; ++i) {
        put_panel<kPieces, Side::kLeft>(left.data + i * kPanel * left.row_stride, left.rows - i * kPanel,
                                        left.row_stride, left.columns, left.column_stride, s, count,
                                        own + (i - begin) * panel_bytes, unused);
      }
      const auto panel = [&](int64_t j) { return packed + (j * right.steps + s) * kStepBytes<kPieces>; };
      for (int64_t from = above_diagonal ? begin : columns.first; from < columns.end; from += right_together) {
        const int64_t to = std::min(columns.end, from + right_together);
        Ahead ahead{panel(to), count_of(kStepBytes<kPieces> / 64 / kFours<kPieces>, end - begin)};
        for (int64_t i = begin; i < end; ++i) {
          for (int64_t j = above_diagonal ? std::max(from, i) : from; j < to; ++j) {
            put_block<kPieces>(own + (i - begin) * panel_bytes, panel(j), count, block_rows, (i - begin) * kPanel,
                               count_rows, j * kPanel, add || s > 0, ahead);
          }
        }
      }
    }
    if (then) then(block_rows.data, block_rows.stride, row, row + count_rows);
  }
}

template <int kPieces>
void multiply_by(const Result& out, bool add, const Plain& left, const Packed& right, bool above_diagonal,
                 const Rows& then, int threads) {
  const int64_t panels = count_of(left.rows, kPanel), right_panels = count_of(out.columns, kPanel);
  const int64_t most_steps = std::min(count_of(left.columns, kStep), kSteps);
  const bool by_rows = panels >= threads || above_diagonal || then;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, by_rows ? panels : right_panels)));
  int64_t together = kLeftBytes / (most_steps * kStepBytes<kPieces>);
  // Of rows too long for the cache it does not matter how many are together.
  const int64_t fit = kRowsBytes / (kPanel * out.stride * 4);
  if (then && (fit > 1 || out.data == nullptr)) together = std::min(together, fit);
  together = std::clamp<int64_t>(together, 1, count_of(panels, by_rows ? threads : 1));
  const int64_t rows_bytes = out.data == nullptr ? together * kPanel * out.stride * 4 : 0;
  const int64_t bytes = together * most_steps * kStepBytes<kPieces> + rows_bytes;
  char* const memory =
      memory_of_caller(static_cast<size_t>(threads * bytes));  // before the threads start: it may throw
  CPL_ISA::parallel_for(threads, threads, 0, [&](int64_t t, char*) {
    const int thread = static_cast<int>(t);
    const Range rows = by_rows ? share(panels, above_diagonal, thread, threads) : Range{0, panels};
    const Range columns = by_rows ? Range{0, right_panels} : share(right_panels, false, thread, threads);
    multiply_some<kPieces>(out, add, left, right, above_diagonal, then, rows, columns, together, memory + t * bytes);
  });
}

template <int kPieces>
bool pack_into(const Plain& right, char* packed, int threads) {
  const int64_t steps = count_of(right.rows, kStep), panels = count_of(right.columns, kPanel);
  std::atomic<bool> in_pieces{true};
  const auto put = [&](int64_t panel, int64_t step, int64_t count, Largest& largest) {
    const int64_t column = panel * kPanel;
    put_panel<kPieces, Side::kRight>(right.data + column * right.column_stride, right.columns - column,
                                     right.column_stride, right.rows, right.row_stride, step, count,
                                     packed + (panel * steps + step) * kStepBytes<kPieces>, largest);
  };
  // Along the rows or the columns, as memory is read fastest.
  const bool by_panels = right.row_stride == 1;
  CPL_ISA::parallel_for(by_panels ? panels : steps, threads, 0, [&](int64_t i, char*) {
    Largest largest;
    if (by_panels) {
      put(i, 0, steps, largest);
    } else {
      for (int64_t panel = 0; panel < panels; ++panel) put(panel, i, 1, largest);
    }
    if (largest.too_large()) in_pieces = false;
  });
  return in_pieces;
}

// f(the number of pieces as a constant)
template <typename F>
bool choose(int pieces, const F& f) {
  if (pieces == 3) return f(std::integral_constant<int, 3>{});
  if (pieces == 1) return f(std::integral_constant<int, 1>{});
  throw std::invalid_argument("products: numbers go in three pieces or one");
}

}  // namespace

int64_t packed_bytes(int64_t rows, int64_t columns, int pieces) {
  return count_of(columns, kPanel) * count_of(rows, kStep) * 2 * pieces * kTileBytes;
}

bool available() {
  static const bool is = granted();
  return is;
}

bool pack(const Plain& right, int pieces, void* packed, int threads) {
  return choose(pieces, [&](auto count) {
    return pack_into<decltype(count)::value>(right, static_cast<char*>(packed), threads);
  });
}

bool has_pieces(const Plain& matrix, int threads) {
  const bool along_rows = matrix.column_stride == 1;
  const int64_t lines = along_rows ? matrix.rows : matrix.columns;
  const int64_t length = along_rows ? matrix.columns : matrix.rows;
  std::atomic<bool> all{true};
  CPL_ISA::parallel_for(lines, threads, 0, [&](int64_t i, char*) {
    const float* const line = matrix.data + i * (along_rows ? matrix.row_stride : matrix.column_stride);
    uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < length; ++j) {
      uint32_t bits;
      memcpy(&bits, line + j, sizeof bits);
      bits &= 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    if (largest >= kTooLarge) all = false;
  });
  return all;
}

void multiply(const Result& out, bool add, const Plain& left, const Packed& right, bool above_diagonal,
              const Rows& then, int threads) {
  if (left.rows == 0 || out.columns == 0) return;
  if (left.columns == 0) {
    for (int64_t i = 0; i < (add ? 0 : left.rows); ++i) std::fill_n(out.data + i * out.stride, out.columns, 0.0f);
    return;
  }
  choose(right.pieces, [&](auto count) {
    multiply_by<decltype(count)::value>(out, add, left, right, above_diagonal, then, threads);
    return true;
  });
}

}  // namespace cpl::products
