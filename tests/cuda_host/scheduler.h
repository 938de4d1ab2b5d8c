// What main says to the scheduler.
#pragma once

#include <cstdint>

namespace cuda_host {

constexpr int kFailed = 70;   // exit status: a kernel did what no kernel may do
constexpr int kRefused = 71;  // exit status: the op threw, the call was malformed

void set_seed(uint64_t seed);

// The kernel, block and thread that run now, on stderr.
void print_place();

}  // namespace cuda_host
