// Words that let one header serve the C++ compiler, nvcc and the device.
#pragma once

#if defined(__CUDACC__)
#define CPL_HD __host__ __device__ __forceinline__
#define CPL_HD_IN_LOOPS CPL_HD
#else
#define CPL_HD inline
// For what stands in loops that must be vectorised: of a large file GCC leaves some calls as they are, and the loop
// scalar.
#define CPL_HD_IN_LOOPS __attribute__((always_inline)) inline
#endif

// cpu.cpp files are compiled once per instruction set, each copy in a namespace of that name.
#ifndef CPL_ISA
#define CPL_ISA baseline
#endif
