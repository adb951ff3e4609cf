# SPDX-License-Identifier: Apache-2.0
# Flags that make a memory error in the program hard to use. They stand before the user's own flags
# (CMAKE_CXX_FLAGS, CMAKE_EXE_LINKER_FLAGS), so that the user's win. tests/attack/binary_test.py reads
# the result.
#
# _GLIBCXX_ASSERTIONS is not among them: it checks the index of every std::span and std::vector in the
# CPU kernels' inner loops.
option(KIVI_HARDENING "Stack protector, _FORTIFY_SOURCE, CET, immediate binding" ON)
if(NOT KIVI_HARDENING)
  return()
endif()
include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)
include(CheckLinkerFlag)

set(kivi_hardening "")
check_cxx_compiler_flag(-fstack-protector-strong KIVI_HAS_STACK_PROTECTOR)
if(KIVI_HAS_STACK_PROTECTOR)
  string(APPEND kivi_hardening " -fstack-protector-strong")
endif()
check_cxx_compiler_flag(-fcf-protection=full KIVI_HAS_CF_PROTECTION)  # x86 only
if(KIVI_HAS_CF_PROTECTION)
  string(APPEND kivi_hardening " -fcf-protection=full")
endif()

# The checks of _FORTIFY_SOURCE need an optimizing build, and hide errors from the sanitizers.
if(NOT KIVI_SANITIZE AND NOT KIVI_FUZZ AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug"
   AND NOT CMAKE_CXX_FLAGS MATCHES "_FORTIFY_SOURCE|-O0")
  foreach(level 3 2)
    set(CMAKE_REQUIRED_FLAGS "-O2 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=${level} -Werror")
    check_cxx_source_compiles("
      #include <cstdio>
      #if __USE_FORTIFY_LEVEL < ${level}
      #error the C library has no such level
      #endif
      int main() {}" KIVI_HAS_FORTIFY_${level})
    unset(CMAKE_REQUIRED_FLAGS)
    if(KIVI_HAS_FORTIFY_${level})
      string(APPEND kivi_hardening " -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=${level}")
      break()
    endif()
  endforeach()
endif()
set(CMAKE_CXX_FLAGS "${kivi_hardening} ${CMAKE_CXX_FLAGS}")

foreach(flag -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)
  string(MAKE_C_IDENTIFIER "KIVI_HAS${flag}" has)
  check_linker_flag(CXX ${flag} ${has})
  if(${has})
    set(CMAKE_EXE_LINKER_FLAGS "${flag} ${CMAKE_EXE_LINKER_FLAGS}")
  endif()
endforeach()
