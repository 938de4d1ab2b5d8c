// Philox4x32-10, the counter-based generator; cpl_kernels/philox.py is its definition and names the source.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

// Words 0 (low) and 1 (high) of the four, as one number.
CPL_HD uint64_t philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<uint64_t>(c1) << 32 | c0;
}

// floor(bits * bound / 2^64) without a 128-bit product; 1 <= bound < 2^31.
CPL_HD int64_t philox_below(int64_t bound, uint64_t bits) {
  const uint64_t n = static_cast<uint64_t>(bound), low = bits & 0xffffffffu, high = bits >> 32;
  return static_cast<int64_t>((high * n + ((low * n) >> 32)) >> 32);
}

}  // namespace CPL_ISA
}  // namespace cpl
