// How large this machine's caches are.
#pragma once

#include <cstddef>

namespace cpl {

// Bytes of the third-level cache, 0 where there is none or the system does not say.
size_t last_level_cache();

// What last_level_cache() says from now on, so that tests need not have results larger than any cache.
void set_last_level_cache(size_t bytes);

}  // namespace cpl
