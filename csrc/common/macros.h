// Words that let one header serve the C++ compiler, nvcc and the device.
#pragma once

#if defined(__CUDACC__)
#define CPL_HD __host__ __device__ __forceinline__
#else
#define CPL_HD inline
#endif

// cpu.cpp files are compiled once per instruction set, each copy in a namespace of that name.
#ifndef CPL_ISA
#define CPL_ISA baseline
#endif
