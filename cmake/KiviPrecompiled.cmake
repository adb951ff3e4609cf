# SPDX-License-Identifier: Apache-2.0
# kivi_precompile(target [json]): compiles the sources of `target` with a precompiled header of the
# standard library and fmt, and of nlohmann/json if asked for. All libraries share the two headers. A
# build without a cache takes a fifth less time with them (scripts/demo turns them on). Each source
# still includes what it uses: clang-tidy and other builds read it so.
option(KIVI_PRECOMPILE "Precompile the headers that most sources include" OFF)

# ccache hashes the preprocessed text of a source, in which GCC names the header only if told to.
set(kivi_precompile_options $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)

set(kivi_precompiled_headers
  <algorithm> <array> <atomic> <charconv> <chrono> <cmath> <condition_variable> <cstdint> <cstdio>
  <cstring> <functional> <map> <memory> <mutex> <optional> <set> <span> <stop_token> <string>
  <string_view> <thread> <unordered_map> <utility> <variant> <vector> <fmt/format.h>)

function(kivi_precompile target)
  if(NOT KIVI_PRECOMPILE)
    return()
  endif()
  set(owner kivi_precompiled)
  if("json" IN_LIST ARGN)
    set(owner kivi_precompiled_json)
  endif()
  if(kivi_folder_is_not_optimized)
    string(APPEND owner _plain)
  endif()
  target_precompile_headers(${target} REUSE_FROM ${owner})
  target_compile_options(${target} PRIVATE ${kivi_precompile_options})
endfunction()

# kivi_add_precompiled(suffix option...): the two headers for folders with these options. GCC uses a
# precompiled header only where it optimizes if the header was made so.
function(kivi_add_precompiled suffix)
  foreach(owner kivi_precompiled kivi_precompiled_json)
    add_library(${owner}${suffix} OBJECT ${PROJECT_SOURCE_DIR}/cmake/precompiled.cpp)
    target_link_libraries(${owner}${suffix} PRIVATE kivi_flags fmt::fmt nlohmann_json::nlohmann_json)
    target_compile_options(${owner}${suffix} PRIVATE ${kivi_precompile_options} ${ARGN})
  endforeach()
  target_precompile_headers(kivi_precompiled${suffix} PRIVATE ${kivi_precompiled_headers})
  target_precompile_headers(kivi_precompiled_json${suffix} PRIVATE
    ${kivi_precompiled_headers} <nlohmann/json.hpp>)
endfunction()
if(KIVI_PRECOMPILE)
  kivi_add_precompiled("")
  if(KIVI_UNITY AND KIVI_SANITIZE)
    kivi_add_precompiled(_plain ${kivi_not_optimized})
  endif()
endif()

# kivi_cold_sources(file...): code that runs once a command, such as flags and reports. A Release build
# optimizes it less, which takes a fifth less time to compile. In a unity build (KiviUnity.cmake) it is
# compiled with the rest of its target, which saves more.
function(kivi_cold_sources)
  if(NOT KIVI_UNITY)
    set_source_files_properties(${ARGN} PROPERTIES
      COMPILE_OPTIONS "$<$<CONFIG:Release>:-O1>")
  endif()
endfunction()
