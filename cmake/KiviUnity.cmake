# SPDX-License-Identifier: Apache-2.0
# KIVI_UNITY: compiles the sources of a target in groups of KIVI_UNITY_SIZE, each group as one source
# that includes them. The headers are then read once a group, which halves the time of a cold build, but
# a change of one source compiles its whole group. So scripts/demo and .ci/run turn it on, and the default
# build does not. A source of a group can use what only another one includes; .ci/alone looks for such
# sources.
#
# Sources of one group share their unnamed namespaces: two helpers of a target may not have the same
# name and parameters. Generated code, CUDA sources and kernels/cpu stay out.
option(KIVI_UNITY "Compile several sources of a target as one" OFF)
set(KIVI_UNITY_SIZE 8 CACHE STRING "Sources in a group of a unity build")
mark_as_advanced(KIVI_UNITY_SIZE)
if(KIVI_UNITY)
  set(CMAKE_UNITY_BUILD ON)
  set(CMAKE_UNITY_BUILD_BATCH_SIZE ${KIVI_UNITY_SIZE})
  # What is a fault in a header is none in a source that is included: a class with a member from an
  # unnamed namespace, or a local variable with the name of a type in the source before it.
  target_compile_options(kivi_flags INTERFACE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage> $<$<COMPILE_LANGUAGE:CXX>:-Wno-shadow>)
  # A group includes its sources by absolute paths, which __FILE__ and the debug information would show.
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=../>)
endif()

# kivi_unity_compiles_quickly(): called by a folder whose code neither computes nor decides the speed
# of a step. A Release build that is a unity build is made to be ready soon: it optimizes these folders
# less, which takes a fifth of their time to compile. With sanitizers it does not optimize them at all,
# which takes a third of it. (-Wno-cpp: _FORTIFY_SOURCE warns without optimization.)
set(kivi_not_optimized $<$<COMPILE_LANGUAGE:CXX>:-O0> -Wno-cpp)
function(kivi_unity_compiles_quickly)
  if(KIVI_UNITY AND KIVI_SANITIZE)
    add_compile_options(${kivi_not_optimized})
    set(kivi_folder_is_not_optimized ON PARENT_SCOPE)
  elseif(KIVI_UNITY)
    add_compile_options($<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O1>)
  endif()
endfunction()
