// The eight tile registers of a thread, as macros: the number of a register is part of the instruction.
//
// With CPL_EMULATED_UNITS in plain C++ instead, for tests on any processor and under sanitizers.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(CPL_EMULATED_UNITS)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cpl::products {

constexpr int64_t kTileRows = 16, kTileBytes = 1024, kRowBytes = 64;

// All registers as 16 rows of 64 bytes while this lives; afterwards what they were set up for before.
class Registers;

#if defined(CPL_EMULATED_UNITS)

namespace emulated {

inline char* tile(int number) {
  static thread_local char tiles[8][kTileBytes];
  return tiles[number];
}

inline void load(int number, const void* from, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    memcpy(tile(number) + r * kRowBytes, static_cast<const char*>(from) + r * stride, kRowBytes);
  }
}

inline void store(int number, void* to, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    memcpy(static_cast<char*>(to) + r * stride, tile(number) + r * kRowBytes, kRowBytes);
  }
}

inline float widened(const char* bf16) {
  uint16_t bits;
  memcpy(&bits, bf16, sizeof bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

// As the instruction adds: even and odd terms by themselves, then both.
inline void multiply(int sum, int left, int right) {
  float a[16][32], b[32][16], total[16][16];
  for (int n = 0; n < 512; ++n) {
    a[n / 32][n % 32] = widened(tile(left) + 2 * n);
    b[n / 32 * 2 + n % 2][n / 2 % 16] = widened(tile(right) + 2 * n);
  }
  memcpy(total, tile(sum), sizeof total);
  for (int i = 0; i < 16; ++i) {
    float parts[2][16] = {};
    for (int k = 0; k < 32; ++k) {
      for (int j = 0; j < 16; ++j) parts[k % 2][j] += a[i][k] * b[k][j];
    }
    for (int j = 0; j < 16; ++j) total[i][j] += parts[0][j] + parts[1][j];
  }
  memcpy(tile(sum), total, sizeof total);
}

}  // namespace emulated

class Registers {};

#define CPL_TILE_ZERO(number) memset(::cpl::products::emulated::tile(number), 0, ::cpl::products::kTileBytes)
#define CPL_TILE_LOAD(number, from, stride) ::cpl::products::emulated::load(number, from, stride)
#define CPL_TILE_STORE(number, to, stride) ::cpl::products::emulated::store(number, to, stride)
#define CPL_TILE_MULTIPLY(sum, left, right) ::cpl::products::emulated::multiply(sum, left, right)

inline bool granted() { return true; }

#else

class Registers {
 public:
  Registers() {
    asm volatile("sttilecfg (%0)" : : "r"(&before_) : "memory");
    Setup all{};
    all.palette = 1;
    for (int i = 0; i < 8; ++i) {
      all.bytes[i] = kRowBytes;
      all.rows[i] = kTileRows;
    }
    set(all);
  }
  ~Registers() { set(before_); }  // of none: gives them back
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;

 private:
  struct alignas(64) Setup {  // as the instruction reads it
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  static void set(const Setup& setup) { asm volatile("ldtilecfg (%0)" : : "r"(&setup) : "memory"); }
  Setup before_{};
};

// Not the compiler's own: of GCC's some do not say that they read memory.
#define CPL_TILE_ZERO(number) asm volatile("tilezero %%tmm" #number : :)
#define CPL_TILE_LOAD(number, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #number : : "r"(from), "r"(static_cast<int64_t>(stride)) : "memory")
#define CPL_TILE_STORE(number, to, stride) \
  asm volatile("tilestored %%tmm" #number ", (%0,%1,1)" : : "r"(to), "r"(static_cast<int64_t>(stride)) : "memory")
#define CPL_TILE_MULTIPLY(sum, left, right) asm volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sum : :)

// Linux keeps the registers from a process until it asks. It may say no: to a thread with a small signal stack.
inline bool granted() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

#endif

}  // namespace cpl::products
