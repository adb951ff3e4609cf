// SPDX-License-Identifier: Apache-2.0
// Empty: the targets of KiviPrecompiled.cmake need a source.
