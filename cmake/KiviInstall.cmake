# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` and `cpack -G DEB` put where. Components:
#   kivi          the program, its service, manual page and completions, ready-made settings, documents
#   kivi_models   the demo model that needs no download
include(GNUInstallDirs)
install(TARGETS kivi RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT kivi)
install(DIRECTORY configs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/kivi/configs COMPONENT kivi
  FILES_MATCHING PATTERN "*.json")
install(FILES README.md LICENSE.md NOTICE.md CHANGELOG.md
  DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT kivi)
# Made by the program itself when it is linked (tools/CMakeLists.txt).
set(made ${PROJECT_BINARY_DIR}/share)
install(FILES ${made}/kivi.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT kivi)
install(FILES ${made}/kivi.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions
  RENAME kivi COMPONENT kivi)
install(FILES ${made}/_kivi DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions
  COMPONENT kivi)
install(FILES ${made}/kivi.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d
  COMPONENT kivi)
install(FILES deploy/systemd/kivi.service DESTINATION lib/systemd/system COMPONENT kivi)
install(FILES deploy/systemd/api-keys.conf DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples
  COMPONENT kivi)
install(DIRECTORY models/tales-llama DESTINATION ${CMAKE_INSTALL_DATADIR}/kivi/models
  COMPONENT kivi_models)
install(FILES LICENSE.md NOTICE.md DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/kivi-models
  COMPONENT kivi_models)

# A project that includes this one makes its own packages.
if(NOT PROJECT_IS_TOP_LEVEL)
  return()
endif()
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME kivi)
set(CPACK_PACKAGE_VENDOR "Kivi Server")
set(CPACK_PACKAGE_CONTACT "The maintainers of Kivi Server")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Server of language models with a quantized key-value cache")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL kivi kivi_models)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
# dpkg-shlibdeps (package dpkg-dev) names the libraries that the program is linked to.
set(CPACK_DEBIAN_KIVI_PACKAGE_NAME kivi)
set(CPACK_DEBIAN_KIVI_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_KIVI_PACKAGE_SUGGESTS kivi-models)
set(CPACK_DEBIAN_KIVI_PACKAGE_CONTROL_EXTRA
  ${PROJECT_SOURCE_DIR}/deploy/systemd/postinst ${PROJECT_SOURCE_DIR}/deploy/systemd/prerm)
set(CPACK_DEBIAN_KIVI_PACKAGE_CONTROL_STRICT_PERMISSION TRUE)
set(CPACK_DEBIAN_KIVI_MODELS_PACKAGE_NAME kivi-models)
set(CPACK_DEBIAN_KIVI_MODELS_PACKAGE_ARCHITECTURE all)
set(CPACK_COMPONENT_KIVI_DESCRIPTION
  "Serves Llama, Mistral, Qwen2, Qwen3, Phi-3 and Falcon models over HTTP and gRPC. Keys and values
are cached in 2 or 4 bits by the KIVI method.")
set(CPACK_COMPONENT_KIVI_MODELS_DESCRIPTION
  "A tiny language model of fairy tales, with which kivi can be tried without a download.")
include(CPack)
