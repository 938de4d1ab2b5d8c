// Numbers in pieces, and pieces in tiles.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "products/units.h"

namespace cpl::products {

// Bits of 2^63: below it, no product of pieces is infinite.
constexpr uint32_t kTooLarge = 0x5f000000u;

#if defined(CPL_EMULATED_UNITS)

struct Largest {  // of numbers seen, the bits without sign
  uint32_t bits = 0;
  bool too_large() const { return bits >= kTooLarge; }
};

// 16 numbers from each place, of which the first so many are read; the others are 0. Piece q goes to out + q * apart.
template <int kPieces>
void put_pieces(const float* low, int64_t low_count, const float* high, int64_t high_count, char* out, int64_t apart,
                Largest& largest) {
  for (int64_t i = 0; i < 32; ++i) {
    const bool there = i < 16 ? i < low_count : i - 16 < high_count;
    float x = there ? *(i < 16 ? low + i : high + i - 16) : 0.0f;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > largest.bits) largest.bits = bits & 0x7fffffffu;
    for (int q = 0; q < kPieces; ++q) {
      BFloat16 piece;
      CPL_ISA::store(&piece, x);
      memcpy(out + q * apart + 2 * i, &piece, sizeof piece);
      x -= CPL_ISA::load(&piece);
    }
  }
}

// Of each row of 32 the first and the second half, number by number.
inline void interleave(char* tile) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    uint16_t row[32], both[32];
    memcpy(row, tile + r * kRowBytes, sizeof row);
    for (int64_t i = 0; i < 32; ++i) both[i] = row[i / 2 + i % 2 * 16];
    memcpy(tile + r * kRowBytes, both, sizeof both);
  }
}

// Of 16 x 16 pairs.
inline void transpose(char* tile) {
  uint32_t before[16][16], after[16][16];
  memcpy(before, tile, sizeof before);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) after[j][i] = before[i][j];
  }
  memcpy(tile, after, sizeof after);
}

#else

struct Largest {
  __m512i bits = _mm512_setzero_si512();
  bool too_large() const { return _mm512_reduce_max_epu32(bits) >= kTooLarge; }
};

inline __mmask16 first(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

inline __m512 widened(__m256i bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }

template <int kPieces>
void put_pieces(const float* low, int64_t low_count, const float* high, int64_t high_count, char* out, int64_t apart,
                Largest& largest) {
  __m512 a = _mm512_maskz_loadu_ps(first(low_count), low), b = _mm512_maskz_loadu_ps(first(high_count), high);
  const __m512i size = _mm512_set1_epi32(0x7fffffff);
  largest.bits = _mm512_max_epu32(largest.bits, _mm512_and_si512(_mm512_castps_si512(a), size));
  largest.bits = _mm512_max_epu32(largest.bits, _mm512_and_si512(_mm512_castps_si512(b), size));
  for (int q = 0; q < kPieces; ++q) {
    const __m512bh both = _mm512_cvtne2ps_pbh(b, a);
    __m512i piece;
    memcpy(&piece, &both, sizeof piece);
    _mm512_store_si512(out + q * apart, piece);
    if (q + 1 == kPieces) break;
    a = _mm512_sub_ps(a, widened(_mm512_castsi512_si256(piece)));  // exact: there are digits enough
    b = _mm512_sub_ps(b, widened(_mm512_extracti64x4_epi64(piece, 1)));
  }
}

inline void interleave(char* tile) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kOrder);
  for (int64_t r = 0; r < kTileRows; ++r) {
    char* const row = tile + r * kRowBytes;
    _mm512_store_si512(row, _mm512_permutexvar_epi16(order, _mm512_load_si512(row)));
  }
}

// By squares of 4 x 4 pairs within the registers' quarters, then the quarters.
inline void transpose(char* tile) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_load_si512(tile + i * kRowBytes);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
    b[4 + i] = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    b[8 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    b[12 + i] = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_store_si512(tile + i * kRowBytes, _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88));
    _mm512_store_si512(tile + (8 + i) * kRowBytes, _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd));
  }
}

#endif

// Which way a tile lies: of a left factor 16 rows of 32 numbers along the sum, of a right one 16 pairs along the sum of
// 16 columns each.
enum class Side { kLeft, kRight };

// A row of a tile of each piece: 32 numbers side by side, of which the first `count` are there.
template <int kPieces>
void put_row(const float* at, int64_t count, char* row, Largest& largest) {
  put_pieces<kPieces>(at, count, count > 16 ? at + 16 : at, count - 16, row, kTileBytes, largest);
}

// A tile of each piece, one behind the other, from `at`: `count` (16 at most are taken) of what is not summed over,
// `stride` apart, by `terms` (32 at most) of what is, `term_stride` apart.
template <int kPieces, Side kSide>
void put_tiles(const float* at, int64_t count, int64_t stride, int64_t terms, int64_t term_stride, char* tiles,
               Largest& largest) {
  if (term_stride == 1) {
    for (int64_t i = 0; i < kTileRows; ++i) {
      put_row<kPieces>(i < count ? at + i * stride : at, i < count ? terms : 0, tiles + i * kRowBytes, largest);
    }
  } else {
    for (int64_t i = 0; i < kTileRows; ++i) {
      const bool low = 2 * i < terms, high = 2 * i + 1 < terms;
      put_pieces<kPieces>(low ? at + 2 * i * term_stride : at, low ? count : 0,
                          high ? at + (2 * i + 1) * term_stride : at, high ? count : 0, tiles + i * kRowBytes,
                          kTileBytes, largest);
    }
    for (int q = 0; q < kPieces; ++q) interleave(tiles + q * kTileBytes);
  }
  if ((term_stride == 1) != (kSide == Side::kLeft)) {
    for (int q = 0; q < kPieces; ++q) transpose(tiles + q * kTileBytes);
  }
}

}  // namespace cpl::products
