# Finds nvcc and decides for which GPUs it compiles. Sets DRELUOP_HAS_CUDA and, where it is true, CMAKE_CUDA_COMPILER,
# DRELUOP_ARCHS (the text built into the operators) and DRELUOP_GENCODE (the matching option of nvcc).
set(DRELUOP_DEFAULT_ARCHS 80 90 100)
set(DRELUOP_OLDEST_ARCH 80)
# Kernel parameters of more than 4 kB.
set(DRELUOP_OLDEST_NVCC 12.1)

set(DRELUOP_HAS_CUDA OFF)
if(DRELUOP_BUILD STREQUAL "cpu")
  return()
endif()

macro(dreluop_go_without_cuda fault remedy)
  if(DRELUOP_BUILD STREQUAL "cuda")
    dreluop_stop("DRELUOP_BUILD=cuda, but ${fault}${remedy}.")
  endif()
  message(STATUS "dreluop: ${fault}; building without CUDA")
  return()
endmacro()

find_program(DRELUOP_NVCC NAMES $ENV{CUDACXX} nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
             PATH_SUFFIXES bin)
if(NOT DRELUOP_NVCC)
  dreluop_go_without_cuda("nvcc was not found" ": set CUDA_HOME, or use DRELUOP_BUILD=cpu")
endif()

# nvcc on PATH may be a script outside its toolkit: ask it where that is.
execute_process(COMMAND ${DRELUOP_NVCC} --dryrun -x cu -c /dev/null -o /dev/null ERROR_VARIABLE dryrun OUTPUT_QUIET)
if(dryrun MATCHES "#\\$ TOP=([^\n]+)")
  file(REAL_PATH "${CMAKE_MATCH_1}" CUDAToolkit_ROOT)
endif()
find_library(DRELUOP_CUDART cudart_static PATHS "${CUDAToolkit_ROOT}" PATH_SUFFIXES lib64 lib NO_DEFAULT_PATH)
if(NOT DRELUOP_CUDART)
  dreluop_go_without_cuda("${CUDAToolkit_ROOT} has no static cudart" "")
endif()

execute_process(COMMAND ${DRELUOP_NVCC} --version OUTPUT_VARIABLE version)
string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" version "${version}")
if("${CMAKE_MATCH_1}" VERSION_LESS DRELUOP_OLDEST_NVCC)
  dreluop_go_without_cuda("nvcc ${CMAKE_MATCH_1} is too old, the CUDA kernels need ${DRELUOP_OLDEST_NVCC}" "")
endif()

# Those of the default that this nvcc knows; the PTX is kept in any case.
set(DRELUOP_ARCHS "${DRELUOP_CUDA_ARCHS}")
if(DRELUOP_ARCHS STREQUAL "")
  execute_process(COMMAND ${DRELUOP_NVCC} --list-gpu-arch OUTPUT_VARIABLE known)
  foreach(number IN LISTS DRELUOP_DEFAULT_ARCHS)
    if("${known}\n" MATCHES "compute_${number}\n")
      list(APPEND DRELUOP_ARCHS ${number})
    endif()
  endforeach()
  string(APPEND DRELUOP_ARCHS "+PTX")
endif()

string(REPLACE "+PTX" "" numbers "${DRELUOP_ARCHS}")
foreach(number IN LISTS numbers)
  if(NOT number MATCHES "^[0-9]+$")
    dreluop_stop("DRELUOP_CUDA_ARCHS=${DRELUOP_ARCHS}: expected numbers such as \"80;90;100+PTX\".")
  elseif(number LESS DRELUOP_OLDEST_ARCH)
    set(needed "the kernels need ${DRELUOP_OLDEST_ARCH} or newer (bf16 conversions)")
    dreluop_stop("DRELUOP_CUDA_ARCHS=${DRELUOP_ARCHS}: ${needed}.")
  endif()
endforeach()
list(REMOVE_DUPLICATES numbers)
list(SORT numbers COMPARE NATURAL)

# One PTX, of the lowest architecture, and machine code from it for each: a PTX for each takes twice as long.
# CMAKE_CUDA_ARCHITECTURES cannot express this.
list(GET numbers 0 lowest)
list(TRANSFORM numbers PREPEND "sm_" OUTPUT_VARIABLE codes)
if(DRELUOP_ARCHS MATCHES "\\+PTX")
  list(APPEND codes "compute_${lowest}")
endif()
list(JOIN codes "," codes)
set(DRELUOP_GENCODE "-gencode=arch=compute_${lowest},code=[${codes}]")
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_COMPILER "${CUDAToolkit_ROOT}/bin/nvcc")
set(DRELUOP_HAS_CUDA ON)
message(STATUS "dreluop: CUDA kernels for ${DRELUOP_ARCHS}, by ${CMAKE_CUDA_COMPILER}")
