# SPDX-License-Identifier: Apache-2.0
# kivi::grpc: gRPC, Protobuf and Abseil, linked statically.
#
# Why static: Debian's libsentencepiece.so carries and exports its own, older protobuf-lite. Beside
# the shared libprotobuf (gRPC's) the program dies before main. Three things keep the two apart:
#   - the archives' symbols are hidden (--exclude-libs), and those that our own objects instantiate
#     (hide_protobuf.map), so that SentencePiece never binds to them;
#   - the archives stand before libsentencepiece.so on the link line (the INTERFACE dependency
#     below; no program may name the library itself), so that gRPC never binds to SentencePiece's;
#   - tests/grpc checks that the program has no dynamic protobuf symbol at all.

# pkg-config is asked once. pkg_check_modules asks it 17 times, a second or more each for this package.
execute_process(
  COMMAND ${PKG_CONFIG_EXECUTABLE} --static --libs-only-l "grpc++ >= 1.51"
  OUTPUT_VARIABLE kivi_grpc_names
  ERROR_VARIABLE error
  RESULT_VARIABLE status
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(status)
  message(FATAL_ERROR "pkg-config does not find gRPC 1.51 or newer:\n${error}")
endif()
string(REGEX MATCHALL "-l[^ ]+" kivi_grpc_names "${kivi_grpc_names}")
list(TRANSFORM kivi_grpc_names REPLACE "^-l" "")
find_package(ZLIB REQUIRED)
find_program(KIVI_PROTOC protoc REQUIRED)
find_program(KIVI_GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

# OpenSSL and zlib stay shared: the HTTP server uses the same ones.
set(kivi_grpc_names grpc++_reflection ${kivi_grpc_names} protobuf)
list(REMOVE_DUPLICATES kivi_grpc_names)
list(REMOVE_ITEM kivi_grpc_names ssl crypto z dl pthread rt atomic)
set(kivi_grpc_archives)
foreach(name IN LISTS kivi_grpc_names)
  find_library(KIVI_ARCHIVE_${name} lib${name}.a REQUIRED)
  mark_as_advanced(KIVI_ARCHIVE_${name})
  add_library(kivi_archive_${name} STATIC IMPORTED GLOBAL)
  set_target_properties(kivi_archive_${name} PROPERTIES
    IMPORTED_LOCATION ${KIVI_ARCHIVE_${name}}
    INTERFACE_LINK_LIBRARIES ${KIVI_SENTENCEPIECE_LIBRARY})
  list(APPEND kivi_grpc_archives kivi_archive_${name})
endforeach()
list(JOIN kivi_grpc_archives "," kivi_grpc_group)

add_library(kivi_grpc_archives INTERFACE)
add_library(kivi::grpc ALIAS kivi_grpc_archives)
# The archives refer to each other in circles.
target_link_libraries(kivi_grpc_archives INTERFACE
  "$<LINK_GROUP:RESCAN,${kivi_grpc_group}>"
  OpenSSL::SSL OpenSSL::Crypto ZLIB::ZLIB Threads::Threads ${CMAKE_DL_LIBS} rt)
# Clang's sanitizers are archives too, and their malloc must be seen by the shared libraries: there,
# gRPC's archives are hidden by name.
set(kivi_hidden_archives ALL)
if(KIVI_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  list(TRANSFORM kivi_grpc_names REPLACE "(.+)" "lib\\1.a" OUTPUT_VARIABLE kivi_hidden_archives)
  list(APPEND kivi_hidden_archives libkivi_proto.a libkivi_grpc.a)
  list(JOIN kivi_hidden_archives ":" kivi_hidden_archives)
endif()
target_link_options(kivi_grpc_archives INTERFACE
  LINKER:--exclude-libs,${kivi_hidden_archives}
  LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/hide_protobuf.map)

# kivi_proto_library(target MESSAGES file... SERVICES file...): a static library of the C++ code of
# proto/<file>, compiled once; SERVICES have gRPC stubs besides. Headers are included as
# "kivi/v1/kivi.pb.h". Generated code is not ours to lint: no warnings.
function(kivi_proto_library target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "MESSAGES;SERVICES")
  set(out ${CMAKE_CURRENT_BINARY_DIR})
  set(sources)
  foreach(file IN LISTS arg_MESSAGES arg_SERVICES)
    string(REGEX REPLACE "\\.proto$" "" stem ${file})
    set(generated ${out}/${stem}.pb.cc ${out}/${stem}.pb.h)
    set(plugin)
    if(file IN_LIST arg_SERVICES)
      list(APPEND generated ${out}/${stem}.grpc.pb.cc ${out}/${stem}.grpc.pb.h)
      set(plugin --grpc_out=${out} --plugin=protoc-gen-grpc=${KIVI_GRPC_CPP_PLUGIN})
    endif()
    add_custom_command(
      OUTPUT ${generated}
      COMMAND ${KIVI_PROTOC} -I ${CMAKE_CURRENT_SOURCE_DIR} --cpp_out=${out} ${plugin}
              ${CMAKE_CURRENT_SOURCE_DIR}/${file}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file}
      COMMENT "protoc ${file}"
      VERBATIM)
    list(APPEND sources ${generated})
  endforeach()
  add_library(${target} STATIC ${sources})
  set_target_properties(${target} PROPERTIES UNITY_BUILD OFF)
  target_include_directories(${target} SYSTEM PUBLIC ${out})
  target_compile_options(${target} PRIVATE -w)
  target_link_libraries(${target} PRIVATE kivi_flags PUBLIC kivi::grpc)
endfunction()
