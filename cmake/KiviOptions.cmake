# SPDX-License-Identifier: Apache-2.0
# Language, warnings, sanitizers, ccache: what every target shares.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# Defaults of a build of our own: a project that includes this one, CMAKE_BUILD_TYPE and
# CMAKE_CXX_FLAGS_RELEASE on the command line come first (project() fills the cache with CMake's own
# default, which is all that we replace).
if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, Debug, RelWithDebInfo or MinSizeRel" FORCE)
  endif()
  if(CMAKE_CXX_FLAGS_RELEASE STREQUAL "-O3 -DNDEBUG")
    set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1" CACHE STRING "Flags of a Release build" FORCE)
  endif()
endif()

include(KiviHardening)

find_program(KIVI_CCACHE ccache)
if(KIVI_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Paths below the source folder are hashed relative to it, so that build folders and clones share
  # the cache.
  set(kivi_launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=pch_defines,time_macros ${KIVI_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${kivi_launcher})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${kivi_launcher})
endif()

# Without ccache too, the program holds no absolute path of its sources: two clones build equal files.
if(NOT KIVI_CCACHE AND PROJECT_IS_TOP_LEVEL)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=../>)
endif()

add_library(kivi_flags INTERFACE)
target_include_directories(kivi_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(kivi_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Wno-missing-field-initializers>
  # Clang's -Wconversion includes signs, GCC's does not.
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-sign-conversion>
  $<$<AND:$<BOOL:${KIVI_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
if(KIVI_SANITIZE)
  target_compile_options(kivi_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${KIVI_SANITIZE} -fno-omit-frame-pointer>)
  # GCC 12 takes an empty std::optional for an uninitialised one once the sanitizers are in.
  target_compile_options(kivi_flags INTERFACE
    $<$<CXX_COMPILER_ID:GNU>:$<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>>)
  target_link_options(kivi_flags INTERFACE -fsanitize=${KIVI_SANITIZE})
  # These checks look at every access to memory. They double the time of compilation, and where they
  # would find something the address sanitizer or the machine stops the program too. The exception is
  # an access that is not aligned, which x86 allows.
  if(KIVI_SANITIZE MATCHES "undefined")
    target_compile_options(kivi_flags INTERFACE
      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=null,alignment,object-size,vptr>)
  endif()
endif()
if(KIVI_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "KIVI_FUZZ needs clang (CXX=clang++), not ${CMAKE_CXX_COMPILER_ID}")
  endif()
  target_compile_options(kivi_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
  target_link_options(kivi_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
