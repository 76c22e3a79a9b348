# The CUDA backend. CUDAARCHS (of CMake) or TORCH_CUDA_ARCH_LIST (of torch) choose the architectures.
# The default is machine code for each generation since sm_75, and PTX of the newest for later ones.

if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  if(DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    # For example "8.0 9.0+PTX", separated by spaces or semicolons.
    string(REGEX REPLACE "[ ;,]+" ";" listed "$ENV{TORCH_CUDA_ARCH_LIST}")
    foreach(entry IN LISTS listed)
      if(NOT entry MATCHES "^([0-9]+)\\.([0-9]+[a-z]?)(\\+PTX)?$")
        message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected numbers such as 9.0, not ${entry}")
      endif()
      list(APPEND wanted "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real")
      if(CMAKE_MATCH_3)
        list(APPEND wanted "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-virtual")
      endif()
    endforeach()
    set(CMAKE_CUDA_ARCHITECTURES "${wanted}" CACHE STRING "" FORCE)
  else()
    set(choose_architectures ON)
    set(CMAKE_CUDA_ARCHITECTURES 75-real)  # CMake needs one to find the compiler
  endif()
endif()

enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.1)
  message(FATAL_ERROR "radam_fused needs CUDA 12.1 or later, found ${CMAKE_CUDA_COMPILER_VERSION}")
endif()

if(choose_architectures)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code
    OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
  set(wanted "")
  foreach(architecture IN ITEMS 75 80 90 100 120)
    if(known MATCHES "sm_${architecture}[^0-9]")
      list(APPEND wanted ${architecture}-real)
      set(newest ${architecture})
    endif()
  endforeach()
  list(APPEND wanted ${newest}-virtual)
  set(CMAKE_CUDA_ARCHITECTURES "${wanted}" CACHE STRING "CUDA architectures" FORCE)
endif()

# Rounds each operation separately, also divisions and roots, as IEEE 754 does: the bits of the CPU
# backend. The benchmark builds a variant without it to measure its cost.
set(RADAM_CUDA_ROUNDING --fmad=false --prec-div=true --prec-sqrt=true --ftz=false
  CACHE STRING "nvcc's options for rounding")
# The benchmark also builds variants with other constants of csrc/cuda/grid.h, as in RADAM_THREADS=64.
set(RADAM_CUDA_CONSTANTS "" CACHE STRING "macros of the step kernels")
add_library(radam_cuda_options INTERFACE)
target_compile_definitions(radam_cuda_options INTERFACE ${RADAM_CUDA_CONSTANTS})
target_compile_definitions(_C PRIVATE ${RADAM_CUDA_CONSTANTS})
target_compile_options(radam_cuda_options INTERFACE
  ${RADAM_CUDA_ROUNDING} -Xcompiler=-Wall,-fvisibility=hidden)

# The step kernels are compiled once per format of the parameter, in parallel.
foreach(dtype IN ITEMS double float BFloat16 Half SplitBFloat16 MasteredBFloat16 MasteredHalf)
  add_library(cuda_${dtype} OBJECT csrc/cuda/step_kernels.cu)
  target_compile_definitions(cuda_${dtype} PRIVATE RADAM_PARAM=${dtype})
  target_link_libraries(cuda_${dtype} PRIVATE radam_cuda_options)
  target_sources(_C PRIVATE $<TARGET_OBJECTS:cuda_${dtype}>)
endforeach()
add_library(cuda_kernels OBJECT csrc/cuda/kernels.cu)
target_link_libraries(cuda_kernels PRIVATE radam_cuda_options)
target_sources(_C PRIVATE
  csrc/cuda/bindings.cpp csrc/cuda/upload.cpp $<TARGET_OBJECTS:cuda_kernels>)

string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
target_compile_definitions(_C PRIVATE RADAM_CUDA="${architectures}")
set_target_properties(_C PROPERTIES CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CXX)
find_package(CUDAToolkit REQUIRED)
target_link_libraries(_C PRIVATE CUDA::cudart_static)
message(STATUS "radam_fused: the CUDA backend for ${architectures}, "
  "CUDA ${CMAKE_CUDA_COMPILER_VERSION}")
