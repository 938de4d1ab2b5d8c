// Checks the checker: bugs that the sanitised build of the CPU kernels must catch, and a right twin.
#include <cstdint>

extern "C" {

void add_in_bounds(float* values, int64_t count) {
#pragma omp parallel for
  for (int64_t i = 0; i < count; ++i) values[i] += 1;
}

void write_one_past(float* values, int64_t count) {
#pragma omp parallel for
  for (int64_t i = 0; i <= count; ++i) values[i] = 1;
}

float read_one_past(const float* values, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i <= count; ++i) sum += values[i];
  return sum;
}

float read_one_before(const float* values, int64_t count) {
  float sum = 0;
  for (int64_t i = -1; i < count; ++i) sum += values[i];
  return sum;
}

// An offset in 32 bits.
int64_t offset_overflows(const float*, int64_t count) {
  const int32_t stride = 1 << 30;
  return stride * static_cast<int32_t>(count);
}
}
