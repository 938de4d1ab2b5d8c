#include "common/caches.h"

#include <atomic>
#include <fstream>

namespace cpl {
namespace {

// The kernel's word and not the C library's: that has been the sum of several caches on AMD processors.
size_t ask() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  size_t number = 0;
  char unit = 0;
  if (!(file >> number >> unit)) return 0;
  return unit == 'K' ? number << 10 : unit == 'M' ? number << 20 : 0;
}

std::atomic<size_t>& known() {
  static std::atomic<size_t> bytes{ask()};
  return bytes;
}

}  // namespace

size_t last_level_cache() { return known().load(std::memory_order_relaxed); }

void set_last_level_cache(size_t bytes) { known().store(bytes, std::memory_order_relaxed); }

}  // namespace cpl
