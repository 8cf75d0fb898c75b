# The compiled part of the Python package: _ops runs with every Python and every torch since 2.10, _C with this Python,
# _autograd with this Python and this torch.
set(DRELUOP_TORCH_TARGET 2.10)
set(DRELUOP_TORCH_TARGET_VERSION 0x020a000000000000)

find_package(Python3 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
# Plain headers and libraries: find_package(Torch) wants a whole CUDA toolkit where torch has CUDA.
set(program "
import os, pybind11, torch
abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
print(os.path.dirname(torch.__file__), torch.__version__, abi, pybind11.get_include(), sep=';')
")
execute_process(
  COMMAND ${Python3_EXECUTABLE} -c "${program}"
  OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(POP_FRONT found TORCH_DIR TORCH_VERSION TORCH_CXX11_ABI PYBIND11_INCLUDE)
if(TORCH_VERSION VERSION_LESS DRELUOP_TORCH_TARGET)
  dreluop_stop("torch ${TORCH_VERSION} is too old: dreluop needs torch ${DRELUOP_TORCH_TARGET} or newer.")
endif()

if(NOT CMAKE_LIBRARY_OUTPUT_DIRECTORY)
  set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/dreluop)
endif()

function(dreluop_use_torch target)
  target_include_directories(${target} SYSTEM PRIVATE ${TORCH_DIR}/include ${TORCH_DIR}/include/torch/csrc/api/include)
  target_link_directories(${target} PRIVATE ${TORCH_DIR}/lib)
  # Messages of torch's checks name the header: without its place on this machine, which g++ may resolve.
  cmake_path(GET TORCH_DIR PARENT_PATH packages)
  file(REAL_PATH ${packages} resolved)
  target_compile_options(${target} PRIVATE -ffile-prefix-map=${packages}/= -ffile-prefix-map=${resolved}/=)
endfunction()

# Only the stable ABI, as it was in the lowest torch. With this macro, any other header of torch is an error.
function(dreluop_use_stable_torch target)
  dreluop_use_torch(${target})
  target_compile_definitions(${target} PRIVATE TORCH_TARGET_VERSION=${DRELUOP_TORCH_TARGET_VERSION})
  # libtorch alone brings the CPU shims, and under a CUDA torch the CUDA ones too.
  target_link_libraries(${target} PRIVATE -Wl,--no-as-needed -ltorch -Wl,--as-needed)
endfunction()

if(NOT DRELUOP_AUTOGRAD STREQUAL "python")
  Python3_add_library(dreluop_autograd MODULE WITH_SOABI csrc/autograd/capped_relu.cpp)
  # It calls hardly any operator of torch's own: with a header for each, it compiles in three quarters of the time.
  target_compile_definitions(dreluop_autograd PRIVATE AT_PER_OPERATOR_HEADERS=1
                                                      _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
  target_include_directories(dreluop_autograd PRIVATE ${DRELUOP_INCLUDE})
  dreluop_use_torch(dreluop_autograd)
  target_link_libraries(dreluop_autograd PRIVATE torch_python torch_cpu c10)
  set(exports ${PROJECT_SOURCE_DIR}/csrc/autograd/exports.map)
  target_link_options(dreluop_autograd PRIVATE -Wl,--version-script=${exports} -s)
  set_target_properties(dreluop_autograd PROPERTIES OUTPUT_NAME _autograd LINK_DEPENDS ${exports})
endif()

add_library(dreluop_ops MODULE csrc/torch/ops_cpu.cpp)
dreluop_use_stable_torch(dreluop_ops)
target_link_libraries(dreluop_ops PRIVATE ${DRELUOP_LIBRARIES})
target_link_options(dreluop_ops PRIVATE -Wl,--exclude-libs,ALL -s)
if(DRELUOP_HAS_CUDA)
  target_sources(dreluop_ops PRIVATE csrc/torch/ops_cuda.cpp csrc/torch/cuda_entry.cpp)
  string(REPLACE ";" "\\;" escaped "${DRELUOP_ARCHS}")
  target_compile_definitions(dreluop_ops PRIVATE "DRELUOP_CUDA_ARCHS=\"${escaped}\"")
endif()
set_target_properties(dreluop_ops PROPERTIES PREFIX "" OUTPUT_NAME _ops.abi3)
install(TARGETS dreluop_ops LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})

Python3_add_library(dreluop_C MODULE WITH_SOABI csrc/python/module.cpp)
target_compile_definitions(
  dreluop_C PRIVATE "DRELUOP_VERSION=\"${DRELUOP_VERSION}\"" "DRELUOP_TORCH_HEADERS=\"${TORCH_VERSION}\""
                    "DRELUOP_TORCH_TARGET=\"${DRELUOP_TORCH_TARGET}\"")
target_include_directories(dreluop_C PRIVATE ${DRELUOP_INCLUDE})
target_include_directories(dreluop_C SYSTEM PRIVATE ${PYBIND11_INCLUDE})
# Asked once: not worth the time of optimizing it.
target_compile_options(dreluop_C PRIVATE -O1)
target_link_options(dreluop_C PRIVATE -s)
set_target_properties(dreluop_C PROPERTIES OUTPUT_NAME _C)
