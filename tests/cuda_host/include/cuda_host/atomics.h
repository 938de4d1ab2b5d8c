// Atomics: one operating-system thread runs everything, so a plain read and write is one. Integers
// wrap, as on the device; the order in which threads come is the scheduler's.
#pragma once

#include <type_traits>

namespace cuda_host {

template <typename T>
T wrapping_add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

template <typename T>
T replace(T* address, T value) {
  const T before = *address;
  *address = value;
  return before;
}

// The value's type must not take part in deduction: atomicAdd(double*, float) is atomicAdd(double*, double).
template <typename T>
struct Same {
  using type = T;
};

}  // namespace cuda_host

template <typename T>
T atomicAdd(T* address, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, cuda_host::wrapping_add(*address, value));
}
template <typename T>
T atomicSub(T* address, typename cuda_host::Same<T>::type value) {
  using U = std::make_unsigned_t<T>;
  return cuda_host::replace(address, static_cast<T>(static_cast<U>(*address) - static_cast<U>(value)));
}
template <typename T>
T atomicExch(T* address, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, value);
}
template <typename T>
T atomicMin(T* address, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, value < *address ? value : *address);
}
template <typename T>
T atomicMax(T* address, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, value > *address ? value : *address);
}
template <typename T>
T atomicAnd(T* address, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, static_cast<T>(*address & value));
}
template <typename T>
T atomicOr(T* address, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, static_cast<T>(*address | value));
}
template <typename T>
T atomicXor(T* address, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, static_cast<T>(*address ^ value));
}
template <typename T>
T atomicCAS(T* address, typename cuda_host::Same<T>::type expected, typename cuda_host::Same<T>::type value) {
  return cuda_host::replace(address, *address == expected ? value : *address);
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return cuda_host::replace(address, *address >= limit ? 0u : *address + 1u);
}
